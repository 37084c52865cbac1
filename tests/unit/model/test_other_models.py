"""Models that are no CLIP of the paper are named by their tensors' names, as their own libraries write them."""

import pytest
import torch

from model.other_models import name_of_model


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: transformers_model("Bert"), "a BERT or a model like it"),
        (lambda: transformers_model("DistilBert"), "a BERT or a model like it"),
        (lambda: transformers_model("Roberta"), "a BERT or a model like it"),
        (lambda: transformers_model("GPT2"), "a GPT-2 or a model like it"),
        (lambda: transformers_model("ViT"), "a ViT of Hugging Face"),
        (lambda: torchvision_model("resnet50"), "a ResNet of torchvision or timm"),
        (lambda: torchvision_model("vit_b_32"), "a ViT of torchvision"),
        (lambda: timm_model("vit_tiny_patch16_224"), "a DINO or a ViT of timm"),
        (lambda: timm_model("resnet18"), "a ResNet of torchvision or timm"),
        (lambda: timm_model("convnext_atto"), "a ConvNeXt"),
    ],
)
def test_a_model_of_another_library_is_named(build, name):
    with torch.device("meta"):
        model = build()
    assert name_of_model(list(model.state_dict()), False, False).name == name


def transformers_model(kind: str):
    import transformers

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 8}
    of_kind = {"DistilBert": {"dim": 32, "n_layers": 1, "n_heads": 1}, "GPT2": {"n_embd": 32, "n_layer": 1, "n_head": 1}}
    config = getattr(transformers, f"{kind}Config")(**(of_kind[kind] if kind in of_kind else small))
    return getattr(transformers, f"{kind}Model")(config)


def torchvision_model(name: str):
    import torchvision

    return torchvision.models.get_model(name)


def timm_model(name: str):
    import timm

    return timm.create_model(name)


def test_one_encoder_is_named_and_a_whole_clip_is_not():
    assert name_of_model(["visual.proj"], True, False).name == "a CLIP's image encoder alone"
    assert name_of_model(["text_projection"], False, True).name == "a CLIP's text encoder alone"
    assert name_of_model(["visual.proj", "text_projection"], True, True) is None
    assert name_of_model(["weight"], False, False) is None


def test_hugging_faces_siglip_and_peers_are_refused_even_with_both_encoders():
    import transformers

    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.SiglipConfig(text_config=part | {"vocab_size": 8}, vision_config=part | {"image_size": 32})
    with torch.device("meta"):
        names = list(transformers.SiglipModel(config).state_dict())
    kind = name_of_model(names, True, True)
    assert kind.name == "a SigLIP"
    assert kind.even_in_a_clip
