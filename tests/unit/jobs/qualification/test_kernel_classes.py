"""Kernels by kind, from names that CUDA's libraries give them."""

import pytest

from jobs.qualification.kernel_classes import busy_share, kernel_class


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off",
            "matrix product",
        ),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix product"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "matrix product"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x128x64_4x1x1", "attention"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "norm"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::sigmoid_kernel_cuda>", "pointwise"),
        ("void at::native::elementwise_kernel<128, 2, direct_copy_kernel_cuda>", "copy, cast, fill"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, MaxOps>>", "softmax and sums"),
        ("void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16>", "gather and scatter"),
        ("triton_poi_fused_add_mul_sigmoid_3", "compiled"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copy, cast, fill"),
        ("aten::addmm", "matrix product"),
        ("a kernel of tomorrow", "other"),
    ],
)
def test_a_kernel_has_the_kind_of_its_library(name, kind):
    assert kernel_class(name) == kind


def test_the_busy_share_counts_kernels_that_overlap_once_and_gaps_not():
    assert busy_share([("a", 0, 4), ("b", 2, 5), ("c", 8, 10)]) == pytest.approx(0.7)
    assert busy_share([("c", 8, 10), ("a", 0, 10), ("b", 2, 5)]) == 1
    assert busy_share([]) == 0
