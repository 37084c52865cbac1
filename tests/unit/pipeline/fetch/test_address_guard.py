"""No address that is not public is dialled, however it is written."""

import ipaddress

import pytest

from pipeline.errors import InputError
from pipeline.fetch.address_guard import AddressRefusedError, GuardedSocketFactory, is_refused, parse_networks

REFUSED = [
    *["127.0.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "0.1.2.3"],
    *["169.254.169.254", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.0.0.1", "198.18.0.1"],
    *["::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fd00:ec2::254", "fe80::1", "fc00::1", "ff02::1"],
    *["64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "2001:db8::1"],
]
ACCEPTED = [
    *["9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "8.8.8.8", "1.1.1.1"],
    *["2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8"],
]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address):
    assert is_refused(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ACCEPTED)
def test_public_neighbours_are_accepted(address):
    assert not is_refused(ipaddress.ip_address(address))


def test_an_allow_list_opens_what_it_names_and_no_more():
    allowed = parse_networks(["127.0.0.1/32"])
    assert not is_refused(ipaddress.ip_address("127.0.0.1"), allowed)
    assert not is_refused(ipaddress.ip_address("::ffff:127.0.0.1"), allowed)
    assert is_refused(ipaddress.ip_address("127.0.0.2"), allowed)
    assert is_refused(ipaddress.ip_address("::1"), allowed)


def test_a_network_that_is_none_is_bad_input():
    with pytest.raises(InputError, match=r"ingest\.fetch\.allow_addresses"):
        parse_networks(["localhost"])


def test_the_socket_factory_refuses_before_a_socket_exists():
    factory = GuardedSocketFactory(())
    with pytest.raises(AddressRefusedError):
        factory((2, 1, 6, "", ("127.0.0.1", 80)))
    with pytest.raises(AddressRefusedError):
        factory((10, 1, 6, "", ("fe80::1%eth0", 80, 0, 2)))
    factory((2, 1, 6, "", ("8.8.8.8", 80))).close()
