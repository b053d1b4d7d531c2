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
    |   +-- UnknownModelError         a name that no card, folder or installed model has
    |   +-- ZooEntryError                 a zoo card with wrong fields
    |   +-- NothingFoundError         a folder without a single usable image
    |   +-- LossInputError            embeddings that a loss is not defined for (batch 1, shapes)
    |   |   +-- NonFiniteEmbeddingsError   embeddings that are not finite numbers, on whichever process
    +-- MissingExtraError         1   an optional package is not installed
    +-- DeviceError               2   a device that this machine or this torch does not have
    +-- TrainingError             1   training cannot go on
    |   +-- NonFiniteLossError        the loss became infinite or not a number
    +-- RegistryError             1   a model cannot be fetched, converted, installed or removed
    |   +-- DownloadError             the other side did not deliver
    |   +-- ChecksumError             a file is not the one that its card names
    |   +-- UnsafeCheckpointError     a checkpoint that asks for code to be run
    |   +-- ConversionError           a checkpoint that does not have the layout its format promises
    |   |   +-- MissingConfigurationError  a checkpoint that needs its own configuration beside it
    |   +-- VerificationError         an installed model does not compute what it did when it was stored
    |   +-- NotExportableError        the target format cannot express this architecture
    +-- DiskSpaceError            1   not enough room for what was asked
    +-- Interrupted             130   Ctrl-C or SIGTERM; what was done so far is saved
"""

from __future__ import annotations


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
    """An error as part of a line: the message of an expected one, the kind and first line of any other."""
    if isinstance(problem, CloobError):
        return problem.message
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
    return f"{type(problem).__name__}: {first}" if first else type(problem).__name__
