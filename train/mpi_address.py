"""Where rank 0 of an mpiexec over several nodes is: no variable says it, so MPI itself is asked."""

from __future__ import annotations

import importlib
import socket

from train.errors import UserError
from train.rank_discovery import Place

_LONGEST = 255  # bytes of a host name


def with_address(place: Place) -> Place:
    """The place with the host name of rank 0. Raises UserError where mpi4py is not there, or knows another world."""
    try:
        # Only here: where the ranks are on one node, or MASTER_ADDR is set, no MPI library is needed.
        world = importlib.import_module("mpi4py.MPI").COMM_WORLD
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "mpiexec started ranks on several nodes: set MASTER_ADDR to the host of rank 0 (Open MPI: mpiexec -x "
            "MASTER_ADDR=HOST, MPICH: mpiexec -genv MASTER_ADDR HOST), or install mpi4py"
        ) from error
    if (world.Get_rank(), world.Get_size()) != (place.rank, place.world_size):
        raise UserError(
            f"mpi4py sees a world of {world.Get_size()}, mpiexec started {place.world_size}: its MPI library is "
            "another one than mpiexec's; set MASTER_ADDR to the host of rank 0, which needs no mpi4py"
        )
    name = bytearray(socket.gethostname().encode().ljust(_LONGEST, b"\0") if place.rank == 0 else bytes(_LONGEST))
    world.Bcast(name, root=0)
    return place._replace(address=bytes(name).rstrip(b"\0").decode())
