"""Text for people: escaped control characters, reasons of errors on one line, counts, lengths of time."""

from __future__ import annotations


def printable(text: str) -> str:
    """Spell out line breaks, tabs, escape sequences and undecodable bytes, so that `text` fits on one line.

    File names, labels and the keys and values of a hostile file may hold any of them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def first_line(problem: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its class where there is none."""
    lines = (line.strip() for line in str(problem).splitlines())
    return next((line for line in lines if line), type(problem).__name__)


def os_reason(problem: OSError) -> str:
    """The operating system's reason for an error, to stand within a message: "no such file or directory"."""
    return (problem.strerror or str(problem)).lower()


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: "1 image", "2,000 images"; `plural` where that is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def told_cut(count: int, texts: str, context: int) -> str:
    """The notice about so many of some texts that are longer than the tokens which a model takes."""
    are, were = ("is", "was") if count == 1 else ("are", "were")
    return f"{texts} {are} longer than the model's {context} tokens and {were} cut"


def duration(seconds: float) -> str:
    """A length of time: "0:07", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
