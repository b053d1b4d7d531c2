"""Every error that cloob expects, in one tree.

An expected error is something a person can put right: it carries one line that says what is wrong and a
hint that says what to do, and the exit code that its command leaves with. `main.py` is the one place that
turns them into text and exit codes; everything else raises them.

    CloobError                    1   something failed
    +-- InputError                2   wrong usage, recipe or input
    |   +-- UsageError                two options that exclude each other, a value out of range
    |   +-- RecipeError               a recipe that cannot be read or holds a wrong key or value
    |   +-- DataError                 a data source that is missing, empty or has other keys
    |   +-- LabelError                a label or template file that cannot be used
    |   +-- ImageError                one image that cannot be read (folders list it and go on)
    |   +-- ModelFolderError          a model folder with a missing, truncated or foreign file
    |   +-- UnknownModelError         a name that no zoo entry, folder or installed model has
    |   +-- ZooEntryError             a zoo entry with wrong fields
    |   +-- NothingFoundError         a folder without a single usable image
    |   +-- LossInputError            embeddings that a loss is not defined for (batch 1, shapes)
    |   |   +-- NonFiniteEmbeddingsError   embeddings that are not finite numbers, on any process
    +-- MissingExtraError         1   an optional package is not installed
    +-- DeviceError               2   a device that this machine or this torch does not have
    +-- TrainingError             1   training cannot go on
    |   +-- NonFiniteLossError        the loss became infinite or not a number
    +-- RegistryError             1   a model cannot be fetched, converted, installed or removed
    |   +-- DownloadError             a server did not deliver the file
    |   |   +-- UnreachableError          no connection to the server that has the file
    |   +-- ChecksumError             a file has another hash than its zoo entry names
    |   +-- UnsafeCheckpointError     a checkpoint that asks for code to be run
    |   +-- ConversionError           a checkpoint without the layout of its format
    |   |   +-- MissingConfigurationError  a checkpoint that needs its own configuration beside it
    |   +-- VerificationError         an installed model computes other numbers than when it was stored
    |   +-- NotExportableError        the target format cannot express this architecture
    +-- DiskSpaceError            1   not enough free space
    +-- Interrupted             130   Ctrl-C or SIGTERM; what was done so far is saved
"""

from __future__ import annotations

from typing import NamedTuple

from cloob_cli.text_format import first_line


class CloobError(Exception):
    """An expected error. `message` is one line; `hint`, if any, says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[CloobError], tuple[str, str | None]]:
        # Errors cross process borders (data workers); the default pickling would lose the hint.
        return (type(self), (self.message, self.hint))


class InputError(CloobError):
    exit_code = 2


class UsageError(InputError):
    pass


class RecipeError(InputError):
    pass


class DataError(InputError):
    pass


class LabelError(InputError):
    pass


class ImageError(InputError):
    pass


class ModelFolderError(InputError):
    pass


class UnknownModelError(InputError):
    pass


class ZooEntryError(InputError):
    pass


class NothingFoundError(InputError):
    pass


class LossInputError(InputError):
    pass


class NonFiniteEmbeddingsError(LossInputError):
    pass


class MissingExtraError(CloobError):
    """An optional dependency is missing: `MissingExtraError.of("report", "matplotlib")`."""

    @classmethod
    def of(cls, extra: str, package: str) -> MissingExtraError:
        return cls(f"this needs the package {package}, which is not installed", f"pip install 'cloob[{extra}]'")


class DeviceError(CloobError):
    exit_code = 2


class TrainingError(CloobError):
    pass


class NonFiniteLossError(TrainingError):
    pass


class RegistryError(CloobError):
    pass


class DownloadError(RegistryError):
    pass


class UnreachableError(DownloadError):
    pass


class ChecksumError(RegistryError):
    pass


class UnsafeCheckpointError(RegistryError):
    pass


class ConversionError(RegistryError):
    pass


class MissingConfigurationError(ConversionError):
    pass


class VerificationError(RegistryError):
    pass


class NotExportableError(RegistryError):
    pass


class DiskSpaceError(CloobError):
    pass


class Interrupted(CloobError):
    exit_code = 130


def one_line(problem: BaseException) -> str:
    """Describe an error in one line: the message of an expected one, the class and first line of any other."""
    if isinstance(problem, CloobError):
        return problem.message
    kind, first = type(problem).__name__, first_line(problem)
    return kind if first == kind else f"{kind}: {first}"


class Failure(NamedTuple):
    """An input that was skipped: its name (a path as text, a pair of a source) and the reason in one line."""

    name: str
    reason: str
