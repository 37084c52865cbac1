"""Web server for the ingestion benchmark: photographs on loopback, over HTTP or HTTPS, well-behaved or not.

    python jobs/benchmarks/image_server.py --folder WORK [--tls]  serves until killed; writes WORK/address when ready

`/good/N.jpg` responds at once. `/mixed/N.jpg` misbehaves at fixed rates, depending on N: slow responses, 503 with Retry-After
or a connection reset on the first request, redirects, and 404.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import ssl
from pathlib import Path

NUM_IMAGES = 64
SIZE_PX = (640, 480)
SLOW_S = 3.0


def photographs() -> list[bytes]:
    """Distinct JPEGs, cut from scikit-learn's two photographs and slightly enlarged."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    jpegs = []
    for number in range(NUM_IMAGES):
        source = sources[number % 2]
        width = int(rng.integers(480, 561))
        height = width * 3 // 4
        left, top = int(rng.integers(0, source.width - width + 1)), int(rng.integers(0, source.height - height + 1))
        cut = source.crop((left, top, left + width, top + height))
        file = io.BytesIO()
        cut.resize(SIZE_PX, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    return jpegs


def certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 from a new authority, whose own certificate is written to `ca.pem`."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    import certifi
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark authority")])
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        times = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
        return times.serial_number(x509.random_serial_number())

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    authority = builder("benchmark authority", authority_key)
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority_pem = authority.add_extension(usage, critical=True).sign(authority_key, hashes.SHA256())
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server_pem = builder("127.0.0.1", server_key).add_extension(names, critical=False).sign(authority_key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    # Includes all authorities that a machine trusts: loading them is part of a client's cost.
    trusted = Path(certifi.where()).read_bytes()
    (folder / "ca.pem").write_bytes(trusted + authority_pem.public_bytes(pem))
    (folder / "server.pem").write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server_pem.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


async def serve(folder: Path, tls: bool) -> None:
    from aiohttp import web

    jpegs, asked = photographs(), set[int]()

    def image(number: int) -> web.Response:
        return web.Response(body=jpegs[number % NUM_IMAGES], content_type="image/jpeg")

    async def good(request: web.Request) -> web.Response:
        return image(int(request.match_info["number"]))

    async def mixed(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        kind, first = number * 7919 % 100, number not in asked
        asked.add(number)
        if kind < 10:
            await asyncio.sleep(SLOW_S)
        elif kind < 25 and first:
            return web.Response(status=503, headers={"Retry-After": "1"})
        elif kind < 35 and first:
            assert request.transport is not None
            request.transport.abort()
        elif kind < 45:
            raise web.HTTPFound(f"/good/{number}.jpg")
        elif kind < 50:
            return web.Response(status=404)
        return image(number)

    application = web.Application()
    application.router.add_get("/good/{number:\\d+}.jpg", good)
    application.router.add_get("/mixed/{number:\\d+}.jpg", mixed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate(folder) if tls else None, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    part = folder / "address.part"
    part.write_text(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    part.rename(folder / "address")
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the address and the certificates")
    parser.add_argument("--tls", action="store_true", help="HTTPS, with a new certificate")
    options = parser.parse_args()
    import uvloop

    uvloop.run(serve(options.folder, options.tls))
