"""`cloob embed --engine ray`: its options, and runs on a Ray cluster of this machine, where Ray is installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import margins
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import cloob_here, environment
from hub_server import hub_serving
from pair_files import write_tar
from tiny_model import RESNET, save_images, save_tiny_model

# A process that loses one of its two workers with the third batch that it gets, and goes on.
KILLED = """
import os
import sys
from cloob_cli.inference.cluster import on_ray
from cloob_cli.inference.cluster.embedder import ImageEmbedder

class Killed(ImageEmbedder):
    batches = 0

    def __call__(self, contents):
        self.batches += 1
        if self.batches == 3:
            try:
                os.close(os.open(os.environ["KILLED"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), 9)
        return super().__call__(contents)

on_ray.embed_parts.__defaults__ = (Killed,)
import functools
import ray
ray.init = functools.partial(ray.init, num_cpus=2, object_store_memory=200_000_000)
from cloob_cli.main import run
run()
"""
PLAIN = KILLED.replace("== 3", "== -1")
# The same in a cluster of two machines (Ray's stand-ins for them) at RAY_ADDRESS, of which one is lost.
MACHINE = (
    KILLED.partition("import functools")[0].replace("os.kill(os.getpid(), 9)", "os.kill(os.getppid(), 9)")
    + """
from ray.cluster_utils import Cluster
memory = {"object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
for _ in range(2):
    cluster.add_node(num_cpus=1, **memory)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
from cloob_cli.main import run
try:
    run()
finally:
    cluster.shutdown()
"""
)
WORDS = ["-m", "model", "--batch-size", "4", "--device", "cpu"]


def make(place: Path) -> list[Path]:
    save_tiny_model(place / "model", RESNET)
    paths = save_images(place / "images", 37)
    for number in (3, 6, 10):
        paths[number].write_bytes(b"broken")
    return paths


def make_with_plain_run(place: Path) -> list[Path]:
    """The same images, and in `one.npy` and the files beside it what a plain run makes of them."""
    paths = make(place)
    assert cloob_here("embed", "images", "-o", "one.npy", *WORDS, cwd=place).returncode == 3
    return paths


def on_ray(place: Path, program: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    (place / "program.py").write_text(program)
    command = [sys.executable, "program.py", "embed", *words, *WORDS, "--engine", "ray", "--actors", "2"]
    variables = environment(KILLED=str(place / "killed"), **env)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # for the workers, too
    return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, timeout=300)


def check_rows(place: Path, output: str) -> None:
    """Compare the embeddings in a Parquet file with those of `one.npy`."""
    embeddings = np.stack(pq.read_table(place / output)["embedding"].to_numpy())
    margins.within(
        float(np.abs(embeddings - np.load(place / "one.npy")).max()),
        1e-6,
        "what is promised: a worker and the plain run may add in another order, by some 1e-7",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "a.txt"], "embeds images, not --text"),
        (["images", "--rebuild"], "always embeds all images"),
        (["-"], "does not read paths from standard input"),
        (["-", "--null"], "does not read paths from standard input"),
    ],
)
def test_options_that_a_cluster_does_not_have(words: list[str], message: str, tmp_path: Path) -> None:
    done = cloob_here("embed", *words, "-o", "a.parquet", "--engine", "ray", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_options_that_only_a_cluster_has(tmp_path: Path) -> None:
    for words in (["--actors", "2"], ["--image-column", "photo"]):
        done = cloob_here("embed", "images", "-o", "a.npy", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert f"{words[0]} is an option of --engine ray" in done.stderr


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    save_images(tmp_path / "images", 1)
    done = cloob_here("embed", "images", "-o", "a.parquet", "--engine", "ray", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'cloob[ray]'" in done.stderr


def test_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of a .npy file is not taken for a result of a cluster, nor the other way round."""
    from cloob_cli.inference.cluster import on_ray

    monkeypatch.setattr(on_ray, "check_ray", lambda: None)
    save_images(tmp_path / "images", 1)
    done = cloob_here("embed", "images", "-o", "a.npy", "--engine", "ray", cwd=tmp_path)
    assert (done.returncode, "unknown file type" in done.stderr) == (2, True)
    for made_by, engine, output in (("embed", "ray", "a.parquet"), ("embed --engine ray", "local", "a.npy")):
        metadata = {"made_by": f"cloob {made_by}"}
        pq.write_table(pa.table({"path": ["x"]}).replace_schema_metadata(metadata), tmp_path / "a.parquet")
        done = cloob_here("embed", "images", "-o", output, "--engine", engine, cwd=tmp_path)
        assert done.returncode == 2
        assert "a.parquet exists, and `cloob embed" in done.stderr


@pytest.mark.slow
@pytest.mark.numeric
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    paths = make_with_plain_run(tmp_path)
    done = on_ray(tmp_path, KILLED, "images", "-o", "two.parquet")
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "killed").exists()
    assert done.stdout.splitlines() == ["two.parquet", "two.failures.jsonl"]
    table, index = pq.read_table(tmp_path / "two.parquet"), pq.read_table(tmp_path / "one.parquet")
    assert table["path"].to_pylist() == index["path"].to_pylist()
    assert {**table.schema.metadata, b"made_by": b"cloob embed"} == index.schema.metadata
    assert (tmp_path / "two.failures.jsonl").read_bytes() == (tmp_path / "one.failures.jsonl").read_bytes()
    check_rows(tmp_path, "two.parquet")
    # A second run replaces the result of the first one.
    paths[3].unlink()
    done = on_ray(tmp_path, PLAIN, "images", "-o", "two.parquet", "--json")
    assert done.returncode == 3, done.stderr
    assert '"skipped": 2' in done.stdout
    check_rows(tmp_path, "two.parquet")


@pytest.mark.slow
@pytest.mark.numeric
def test_a_lance_table(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    lancedb = pytest.importorskip("lancedb")
    make_with_plain_run(tmp_path)
    for _ in range(2):  # the second run replaces the result of the first one
        done = on_ray(tmp_path, PLAIN, "images", "-o", "two.lance")
        assert done.returncode == 3, done.stderr
        assert done.stdout.splitlines() == ["two.lance", "two.failures.jsonl"]
    table = lancedb.connect(tmp_path).open_table("two").to_arrow()
    assert table["path"].to_pylist() == pq.read_table(tmp_path / "one.parquet")["path"].to_pylist()
    pq.write_table(table, tmp_path / "two.parquet")
    check_rows(tmp_path, "two.parquet")
    other = cloob_here("embed", "images", "-o", "two.lance", *WORDS, cwd=tmp_path)
    assert other.returncode == 2
    assert "two.lance exists, and `cloob embed` did not write it" in other.stderr


@pytest.mark.slow
@pytest.mark.numeric
def test_a_machine_that_is_lost_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    make_with_plain_run(tmp_path)
    done = on_ray(tmp_path, MACHINE, "images", "-o", "two.parquet")
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "killed").exists()
    assert "on 2 machines" in done.stderr
    names = [pq.read_table(tmp_path / name)["path"].to_pylist() for name in ("two.parquet", "one.parquet")]
    assert names[0] == names[1]
    assert (tmp_path / "two.failures.jsonl").read_bytes() == (tmp_path / "one.failures.jsonl").read_bytes()
    check_rows(tmp_path, "two.parquet")


@pytest.mark.slow
def test_errors_of_workers_and_of_the_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    make(tmp_path)
    done = on_ray(tmp_path, PLAIN, "images", "-o", "two.parquet", "--precision", "fp99")
    assert done.returncode == 2
    assert "error: unknown precision 'fp99'\nhint: use auto, fp32, fp16, bf16" in done.stderr
    assert "Traceback" not in done.stderr
    done = on_ray(tmp_path, PLAIN.replace("num_cpus=2", "num_cpus=1"), "images", "-o", "two.parquet")
    assert done.returncode == 2
    assert "error: the Ray cluster has 1 processor core, not 2" in done.stderr
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = on_ray(tmp_path, PLAIN, "images", "-o", "two.parquet", RAY_ADDRESS=address)
    assert done.returncode == 1
    assert f"error: no Ray cluster at {address}" in done.stderr
    assert list(tmp_path.glob("*two*")) == []


@pytest.mark.slow
@pytest.mark.numeric
def test_tars_and_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    make(tmp_path)
    tars = [write_tar(tmp_path / "tars" / f"{first}.tar", range(first, first + 13)) for first in (0, 13)]
    # The same images as files, in the order of the tars.
    (tmp_path / "same").mkdir()
    members: list[bytes] = []
    for tar in tars:
        with tarfile.open(tar) as opened:
            members += [opened.extractfile(member).read() for member in opened if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    for number, data in enumerate(members):
        (tmp_path / "same" / f"{number:03}.jpg").write_bytes(data)
    (tmp_path / "tables").mkdir()
    for part, first in enumerate(range(0, 26, 9)):
        column = [{"bytes": data, "path": None} for data in members[first : first + 9]]
        pq.write_table(pa.table({"photo": column}), tmp_path / "tables" / f"{part}.parquet", row_group_size=4)
    assert cloob_here("embed", "same", "-o", "one.npy", *WORDS, cwd=tmp_path).returncode == 0
    done = on_ray(tmp_path, PLAIN, "tars", "-o", "tars.parquet")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "tars.parquet")["path"].to_pylist() == [
        f"tars/{tar}.tar/{number:09}.jpg" for tar in (0, 13) for number in range(tar, tar + 13)
    ]
    check_rows(tmp_path, "tars.parquet")
    done = on_ray(tmp_path, KILLED, "tables", "-o", "tables.parquet", "--image-column", "photo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    names = pq.read_table(tmp_path / "tables.parquet")["path"].to_pylist()
    assert names == [f"tables/{number // 9}.parquet:{number % 9}" for number in range(26)]
    check_rows(tmp_path, "tables.parquet")


@contextmanager
def s3_serving() -> Iterator[int]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.filterwarnings("default")  # of the server's packages
def test_a_bucket(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    paths = make_with_plain_run(tmp_path)
    from pyarrow import fs

    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    with s3_serving() as port, pytest.MonkeyPatch.context() as patched:
        for name, value in keys.items():
            patched.setenv(name, value)
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        bucket, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
        bucket.create_dir("bucket")
        for path in paths:
            with bucket.open_output_stream(f"bucket/images/{path.name}") as stream:
                stream.write(path.read_bytes())
        done = on_ray(tmp_path, KILLED, f"s3://bucket/images?{options}", "-o", "two.parquet")
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "killed").exists()
    names = pq.read_table(tmp_path / "two.parquet")["path"].to_pylist()
    assert names == [f"s3://bucket/images/{path.name}" for number, path in enumerate(paths) if number not in (3, 6, 10)]
    check_rows(tmp_path, "two.parquet")


@pytest.mark.slow
@pytest.mark.numeric
def test_a_data_set_on_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    paths = make_with_plain_run(tmp_path)
    with hub_serving() as hub:
        hub.repositories["ORG/REPO"] = {f"images/{path.name}": path.read_bytes() for path in paths}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = on_ray(tmp_path, KILLED, "hf://datasets/ORG/REPO/images", "-o", "two.parquet", **settings)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "killed").exists()
    names = pq.read_table(tmp_path / "two.parquet")["path"].to_pylist()
    kept = [path.name for number, path in enumerate(paths) if number not in (3, 6, 10)]
    assert names == [f"hf://datasets/ORG/REPO/images/{name}" for name in kept]
    check_rows(tmp_path, "two.parquet")
