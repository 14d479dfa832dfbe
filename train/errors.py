"""The expected failures of training, each with the exit code a command ends with."""

from data_pipeline.errors import BertmaeError, DataError, UserError

__all__ = ["BertmaeError", "CheckpointError", "DataError", "NonFiniteError", "StoppedError", "UserError"]


class CheckpointError(BertmaeError):
    """A checkpoint that is missing, incomplete or damaged, or that could not be written."""

    exit_code = 4


class NonFiniteError(BertmaeError):
    """Too many updates in a row had gradients that are not finite."""

    exit_code = 5


class StoppedError(BertmaeError):
    """The run stopped because it was asked to; its checkpoint is committed and the same command goes on."""

    exit_code = 75
