"""The data sets of `cloob eval`: found on this disk, fetched from the Hub, or listed by a suite."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cloob_cli import console
from cloob_cli.commands.download_progress import reporting
from cloob_cli.errors import DataError, DownloadError

if TYPE_CHECKING:
    from cloob_cli.data.labeled_set import ClassificationSet
    from cloob_cli.evaluation.evaluate import Asked, DataSet
    from cloob_cli.evaluation.suites import Suite, SuiteSet
    from cloob_cli.registry.http import Hosts


@dataclass(frozen=True)
class Job:
    """A data set and what is asked of it.

    Attributes:
        train: the images to learn from, if any.
        published: accuracies in percent by the names of models, and where they stand.
    """

    data: DataSet
    asked: Asked
    train: ClassificationSet | None = None
    published: dict[str, float] = field(default_factory=dict)
    published_by: str | None = None


@dataclass
class Found:
    """The data sets to measure, and the names of those of suites that are not here."""

    jobs: list[Job] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_data_sets(names: list[str], asked: Asked, folder: Path | None, only: set[str] | None = None) -> Found:
    """Open the data sets and suites that the arguments name.

    Args:
        folder: where the local data sets of suites are; None: where fetched ones are kept.
        only: of suites these data sets; None: all.

    Raises:
        DataError: a data set cannot be opened; of suites, not one is here.
    """
    from cloob_cli.evaluation.suites import find_suite, read_suite
    from cloob_cli.registry.http import Hosts

    found, hosts = Found(), Hosts()
    for name in names:
        suite = find_suite(name)
        if suite is not None:
            _add_suite(found, read_suite(suite), asked, folder, only, hosts)
        else:
            found.jobs.append(_job(located(name, asked), asked))
    if not found.jobs:
        raise DataError(f"not one data set is here: {', '.join(found.missing)}", "name their folder with --data")
    return found


def _job(path: Path, asked: Asked) -> Job:
    from cloob_cli.evaluation.evaluate import open_data, open_train

    data, train = open_data(path, asked), open_train(path, asked)
    for line in dict.fromkeys(line for part in (data, train) for line in getattr(part, "left_out", ())):
        console.warn(f"{path}: {line}")
    return Job(data, asked, train)


def located(name: str, asked: Asked, hosts: Hosts | None = None) -> Path:
    """The path of a data set; one on the Hub is fetched first.

    Args:
        hosts: those that are asked for other data sets too.
    """
    from cloob_cli.evaluation.results import LEARNING
    from cloob_cli.registry.datasets import hub_data_set

    if not name.startswith("hf://"):
        return Path(name).expanduser()
    with reporting() as report:
        splits = [asked.split, *([asked.train_split] if asked.task in LEARNING else [])]
        return hub_data_set(name, splits, report, hosts)


def _add_suite(
    found: Found, suite: Suite, asked: Asked, folder: Path | None, only: set[str] | None, hosts: Hosts
) -> None:
    for one in suite.datasets:
        if only is not None and one.name not in only:
            continue
        changed = replace(asked, split=one.split, task=one.task or asked.task)
        try:
            path = _suite_path(one, changed, folder, hosts)
            if path is None:
                console.warn(f"{one.name} is not at {_local(one, folder)}; passed over")
                found.missing.append(one.name)
                continue
            job = _job(path, _with_names(suite, one, changed, hosts))
        except DownloadError as problem:
            console.warn(f"{one.name}: {problem.message}; passed over")
            found.missing.append(one.name)
            continue
        named = replace(job.data, name=one.name)
        found.jobs.append(replace(job, data=named, published=one.published, published_by=suite.published_by))


def _suite_path(one: SuiteSet, asked: Asked, folder: Path | None, hosts: Hosts) -> Path | None:
    """The folder of a suite's data set, fetched where it has an address; None where it is not here."""
    from cloob_cli.registry.datasets import zip_data_set

    if one.source.startswith("hf://"):
        return located(one.source, asked, hosts)
    if one.source.startswith(("https://", "http://")):
        with reporting() as report:
            return zip_data_set(one.source, one.name, one.sha256, report, hosts)
    path = _local(one, folder)
    return path if path.exists() else None


def _local(one: SuiteSet, folder: Path | None) -> Path:
    from cloob_cli.registry import paths

    return (folder or paths.datasets_folder()) / Path(one.source).expanduser()


def _with_names(suite: Suite, one: SuiteSet, asked: Asked, hosts: Hosts) -> Asked:
    """Add the class names and templates that the suite gives; those of the command line come first."""
    from cloob_cli.evaluation.python_class_lists import names_and_templates, read_name_lists
    from cloob_cli.registry.datasets import fetched_text

    classes, templates = one.classes, one.templates
    if one.names and suite.names_from:
        with reporting() as report:
            text = fetched_text(suite.names_from, report, hosts)
        lists = read_name_lists(text, suite.names_from)
        classes, templates = names_and_templates(lists, one.names, suite.names_from)
    if classes and asked.labels is None:
        asked = replace(asked, labels=[(name, [name]) for name in classes], labels_file=f"the suite {suite.name}")
    return replace(asked, templates=asked.templates or templates)
