"""A name server for pods, as a cluster has one: answers A queries from a hosts file, and that there is nothing to all others.

python tests/support/name_server.py HOSTS ADDRESS
"""

import socket
import struct
import sys
from pathlib import Path

A, NO_SUCH_NAME = 1, 3
HEADER = struct.Struct("!6H")


def answer(query: bytes, hosts: str) -> bytes:
    """Return the reply to one query over UDP."""
    number, _, *_ = HEADER.unpack_from(query)
    labels, at = [], HEADER.size
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode())
        at += 1 + size
    question = query[HEADER.size : at + 5]
    (kind,) = struct.unpack_from("!H", query, at + 1)
    known = {name: line.split()[0] for line in hosts.splitlines() for name in line.split()[1:]}
    address = known.get(".".join(labels))
    found = b""
    if address and kind == A:
        found = struct.pack("!HHHIH", 0xC00C, A, 1, 5, 4) + socket.inet_aton(address)  # 0xC00C: the name of the question
    flags = 0x8580 | (0 if address else NO_SUCH_NAME)
    return HEADER.pack(number, flags, 1, bool(found), 0, 0) + question + found


def main(hosts: Path, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            query, client = server.recvfrom(512)
            server.sendto(answer(query, hosts.read_text(encoding="utf-8")), client)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
