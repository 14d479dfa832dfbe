"""The meeting of the ranks: all of them know the hosts, and who does not come is named instead of waited for."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from train.errors import BertmaeError
from train.rank_discovery import Place
from train.rendezvous import meet


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet_all(ranks, size, port, patience, devices=("cpu", "cpu", "cpu")):
    """What each rank ends with: the hosts of all, or its error."""

    def one(rank):
        try:
            # The store lives as long as the meeting is held.
            return meet(Place(rank, size, rank, "torchrun", "127.0.0.1", port), devices[rank], patience)
        except BertmaeError as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(one, ranks))


def test_all_ranks_know_all_hosts():
    """Reference: this host's name, once for each rank."""
    meetings = meet_all([2, 0, 1], 3, free_port(), 60)
    assert [meeting.hosts_R for meeting in meetings] == [[socket.gethostname()] * 3] * 3


def test_the_ranks_that_do_not_come_are_named_by_rank_0_alone():
    """Reference: ranks 1 and 3 of 4, which nobody starts; the other one leaves the word to rank 0."""
    first, other = meet_all([0, 2], 4, free_port(), 3)
    assert "ranks 1, 3 did not come within 3 s" in str(first)
    assert f"2 on {socket.gethostname()}" in str(first)
    assert not first.everywhere
    assert other.everywhere


def test_ranks_with_different_devices_are_named_before_they_wait_for_each_other():
    """Reference: the device of each."""
    first, other = meet_all([0, 1], 2, free_port(), 60, ("cpu", "cuda"))
    here = socket.gethostname()
    assert f"rank 0 on {here} has cpu, rank 1 on {here} has cuda" in str(first)
    assert other.everywhere


def test_a_rank_that_cannot_reach_rank_0_says_why():
    """Reference: a port on which nobody listens, one on which something else does, and a name that is nobody's."""
    (refused,) = meet_all([1], 2, free_port(), 1)
    assert "cannot reach rank 0" in str(refused) and "nobody listens on that port" in str(refused)
    with socket.socket() as other_program:
        other_program.bind(("127.0.0.1", 0))
        other_program.listen()
        (silent,) = meet_all([1], 2, other_program.getsockname()[1], 2)
    assert "another program has that port" in str(silent)
    with pytest.raises(BertmaeError, match="no host of that name; set MASTER_ADDR"):
        meet(Place(1, 2, 0, "torchrun", "no-such-host.invalid", 1), "cpu", 1)


def test_a_port_that_is_taken_is_named_by_rank_0():
    """Reference: a listening socket; the error comes at once, not after the patience."""
    with socket.socket() as other_program:
        other_program.bind(("0.0.0.0", 0))  # noqa: S104 - as the store does
        other_program.listen()
        port, began = other_program.getsockname()[1], time.monotonic()
        (taken,) = meet_all([0], 2, port, 60)
    assert f"rank 0 cannot listen on port {port}" in str(taken)
    assert time.monotonic() - began < 30


def test_rank_0_says_that_the_others_look_for_it_on_another_host(caplog):
    """Reference: an address for documents (RFC 5737), at which nobody is; rank 0 alone still meets itself."""
    meeting = meet(Place(0, 1, 0, "torchrun", "192.0.2.1", free_port()), "cpu", 30)
    assert meeting.hosts_R == [socket.gethostname()]
    assert f"192.0.2.1 is no address of {socket.gethostname()}" in caplog.text


def test_a_name_that_nobody_knows_ends_rank_0_at_once():
    """Reference: a name that no server may have (RFC 6761), long before the patience is over."""
    began = time.monotonic()
    with pytest.raises(BertmaeError, match="no host of that name"):
        meet(Place(0, 2, 0, "torchrun", "nowhere.invalid", free_port()), "cpu", 60)
    assert time.monotonic() - began < 30
