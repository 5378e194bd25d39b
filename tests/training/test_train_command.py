"""`ketos train`, `test` and `convert` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distrib.model.weights import load_weights
from distrib.stream.lines import open_collection

from .conftest import TINY_SPEC, ketos

FEW = ["-B", 4, "-q", "fixed", "-N", 1, "-s", TINY_SPEC]


@pytest.fixture(scope="module")
def run(lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    ketos("--workers", 0, "train", "-f", "binary", "-o", directory, *FEW, lines_arrow)
    return directory


def test_a_run_leaves_weights_checkpoints_metrics_and_its_configuration(run: Path) -> None:
    (weights,) = run.glob("best_*.safetensors")
    score = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8"))["val_accuracy"]
    assert weights.stem == f"best_{score:.4f}"
    assert (run / f"checkpoint_00-{score:.4f}.ckpt").is_file()
    assert {"last.ckpt", "experiment.yml", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    model = load_weights(weights)
    assert (model.seg_type, model.one_channel_mode) == ("bbox", "L")
    assert model.metrics[-1][1]["val_accuracy"] == score


def test_the_overview_comes_before_the_first_step(lines_arrow: Path, tmp_path: Path) -> None:
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, lines_arrow)
    assert done.stdout.startswith("training on ")
    assert "split by line" in done.stdout
    assert "alphabet of " in done.stdout
    assert "only in training, not measured: " in done.stdout


def test_a_second_run_in_the_same_directory_is_refused(run: Path, lines_arrow: Path) -> None:
    before = sorted(run.iterdir())
    done = ketos("train", "-f", "binary", "-o", run, *FEW, lines_arrow, expect=2)
    assert f"continue it with `--resume {run}`" in done.stderr
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    "format_type",
    [
        "path",
        pytest.param("alto", marks=pytest.mark.slow),
        pytest.param("page", marks=pytest.mark.slow),
        "xml",
    ],
)
def test_every_format_trains_without_compiling_first(format_type: str, sample: Path, tmp_path: Path) -> None:
    folders = {"path": ["lines"], "alto": ["alto"], "page": ["page"], "xml": ["alto", "page"]}
    ending = "png" if format_type == "path" else "xml"
    sources = [
        path for folder in folders[format_type] for path in sorted((sample / folder).glob(f"*.{ending}"))
    ]
    manifest = tmp_path / "train.lst"
    manifest.write_text("\n".join(map(str, sources)), encoding="utf-8")
    ketos("train", "-f", format_type, "-o", tmp_path / "run", *FEW, "-t", manifest, "--split-by", "line")
    (weights,) = (tmp_path / "run").glob("best_*.safetensors")
    assert load_weights(weights).seg_type == ("bbox" if format_type == "path" else "baselines")


def test_validation_data_replace_the_partition(lines_arrow: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "val.lst"
    manifest.write_text(str(lines_arrow), encoding="utf-8")
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, "-e", manifest, lines_arrow)
    count = len(open_collection([lines_arrow]))
    assert f"training on {count} lines" in done.stdout
    assert f"validating on {count} lines, as given" in done.stdout


def test_test_prints_the_report_files_and_worst_lines(run: Path, sample: Path) -> None:
    (weights,) = run.glob("best_*.safetensors")
    lines = sorted((sample / "lines").glob("*.png"))[:5]
    done = ketos("test", "-m", weights, "-f", "path", "--worst", 2, "--per-file", *lines)
    assert "Character Accuracy (Case-insensitive)" in done.stdout
    assert "Characters\tErrors\tAccuracy\tLines\tFile" in done.stdout
    assert done.stdout.count("  prediction  ") == 2


def test_convert_goes_between_all_formats(run: Path, tmp_path: Path, lines_arrow: Path) -> None:
    safetensors, coreml = tmp_path / "a.safetensors", tmp_path / "a.mlmodel"
    ketos("convert", "-o", safetensors, run / "last.ckpt")
    ketos("convert", "-o", coreml, "--weights-format", "coreml", safetensors)
    ketos("convert", "-o", tmp_path / "b.safetensors", coreml)
    one, other = load_weights(safetensors), load_weights(tmp_path / "b.safetensors")
    assert one.network.spec == other.network.spec
    assert one.codec == other.codec


def test_coreml_can_be_the_exported_format(lines_arrow: Path, tmp_path: Path) -> None:
    ketos("train", "-f", "binary", "-o", tmp_path / "r", "--weights-format", "coreml", *FEW, lines_arrow)
    assert list((tmp_path / "r").glob("best_*.mlmodel"))


def test_early_stopping_ends_a_run_without_limit(lines_arrow: Path, tmp_path: Path) -> None:
    options = ["-q", "early", "--lag", 2, "-N", -1, "-r", 1e-9]
    ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, *options, lines_arrow)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3


def test_fine_tuning_adds_characters_on_request_only(run: Path, sample: Path, tmp_path: Path) -> None:
    (weights,) = run.glob("best_*.safetensors")
    pair = tmp_path / "line.png"
    pair.write_bytes((sample / "lines" / "0001.png").read_bytes())
    pair.with_suffix("").with_suffix(".gt.txt").write_text("Ж", encoding="utf-8")
    manifest = tmp_path / "val.lst"
    manifest.write_text(str(sample / "lines" / "0002.png"), encoding="utf-8")
    data = ["-f", "path", "-o", tmp_path / "run", *FEW, "-e", manifest, pair]
    done = ketos("train", "-i", weights, *data, expect=2)
    assert "U+0416" in done.stderr
    assert not (tmp_path / "run").exists()
    ketos("train", "-i", weights, "--resize", "union", *data)
    (tuned,) = (tmp_path / "run").glob("best_*.safetensors")
    assert set(load_weights(tuned).codec.c2l) == {*load_weights(weights).codec.c2l, "Ж"}


def test_an_unreadable_line_is_counted_and_named(lines_arrow: Path, tmp_path: Path) -> None:
    content = bytearray(lines_arrow.read_bytes())
    start = content.find(b"IDAT", len(content) // 2) + 40
    content[start : start + 300] = bytes(255 - byte for byte in content[start : start + 300])
    broken = tmp_path / "broken.arrow"
    broken.write_bytes(content)
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, "-B", 1, broken)
    assert "1 line could not be used" in done.stderr
    (bad,) = (tmp_path / "run" / "bad_lines.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(bad)["source"].endswith(".png")
    assert "has changed on its disk" in json.loads(bad)["reason"]


def test_a_line_too_narrow_for_its_text_is_left_out_and_counted(sample: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted((sample / "lines").glob("000*")):
        (data / path.name).write_bytes(path.read_bytes())
    (data / "0001.gt.txt").write_text("no line of this width can hold as many letters as this " * 9, "utf-8")
    manifest = tmp_path / "val.lst"
    manifest.write_text(str(sample / "lines" / "0011.png"), encoding="utf-8")
    lines = sorted(data.glob("*.png"))
    done = ketos("train", "-f", "path", "-o", tmp_path / "run", *FEW, "-e", manifest, *lines)
    assert "left out: 1 line too narrow for their text (CTC)" in done.stdout


def test_the_last_epoch_is_validated_and_kept(lines_arrow: Path, tmp_path: Path) -> None:
    ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, "-N", 3, "-F", 2, lines_arrow)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(lines_arrow: Path, tmp_path: Path) -> None:
    options = [*FEW, "--optimizer", "SGD", "-r", "1e38", "--gradient-clip-val", 0, "-N", 3]
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *options, lines_arrow, expect=1)
    assert "steps in a row had no finite loss and gradient" in done.stderr


def test_lines_marked_as_test_are_never_trained_on(sample: Path, tmp_path: Path) -> None:
    data = tmp_path / "pages.arrow"
    ketos("compile", "-f", "xml", "-o", data, *sorted((sample / "alto").glob("*.xml")))
    marks = open_collection([data]).index().splits
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, data)
    assert (marks == 3).any()
    assert f"training on {(marks < 2).sum()} lines" in done.stdout
    assert f"validating on {(marks == 2).sum()} line" in done.stdout


def test_lines_of_two_types_are_not_mixed(lines_arrow: Path, sample: Path, tmp_path: Path) -> None:
    data = tmp_path / "pages.arrow"
    ketos("compile", "-f", "xml", "-o", data, *sorted((sample / "alto").glob("*.xml")))
    (tmp_path / "val.lst").write_text(str(data), encoding="utf-8")
    options = [*FEW, "-e", tmp_path / "val.lst"]
    done = ketos("train", "-f", "binary", "-o", tmp_path / "run", *options, lines_arrow, expect=2)
    assert "give both the same type" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "Adam"],
        ["--optimizer", "RMSprop"],
        ["--optimizer", "SGD", "-m", "0.5", "-w", "0.01"],
        ["--logger", "tensorboard", "--log-dir", "logs"],
        ["--split-by", "page"],
        ["-u", "NFD", "--no-reorder", "--base-dir", "R", "--no-normalize-whitespace"],
        ["--pad", "0"],
        ["-c", "codec.json"],
    ],
    ids=" ".join,
)
def test_options_that_change_how_a_run_trains(options: list[str], lines_arrow: Path, tmp_path: Path) -> None:
    ((_, texts, _),) = open_collection([lines_arrow]).text_chunks()
    alphabet = sorted({*"".join(texts)})
    labels = {character: [number] for number, character in enumerate(alphabet, start=2)}
    (tmp_path / "codec.json").write_text(json.dumps(labels), encoding="utf-8")
    ketos("train", "-f", "binary", "-o", tmp_path / "run", *FEW, *options, lines_arrow, cwd=tmp_path)
    (weights,) = (tmp_path / "run").glob("best_*.safetensors")
    if "-c" in options:
        assert load_weights(weights).codec.c2l == labels
    if "-u" in options:
        assert {"\u0300", "\u0301", "\u0308"} & set(load_weights(weights).codec.c2l)
    if "--logger" in options:
        assert list((tmp_path / "logs").rglob("events.out.*"))


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16-true", "64-true"))]
)
def test_precisions_train_and_deterministic_is_accepted(
    precision: str, lines_arrow: Path, tmp_path: Path
) -> None:
    top = ["--precision", precision, "--deterministic", "--threads", 2]
    ketos(*top, "train", "-f", "binary", "-o", tmp_path / "run", *FEW, lines_arrow)
    (weights,) = (tmp_path / "run").glob("best_*.safetensors")
    ketos(*top[:2], "test", "-m", weights, "-f", "binary", lines_arrow)


@pytest.mark.slow
def test_32_lines_are_learned_by_heart(sample: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "lines.lst"
    lines = sorted((sample / "lines").glob("*.png"))[:32]
    manifest.write_text("\n".join(map(str, lines)), encoding="utf-8")
    spec = "[1,40,0,1 Cr3,7,16 Mp2,2 Cr3,5,32 Mp2,2 S1(1x0)1,3 Lbx64 Lbx64]"
    options = [
        "-B",
        2,
        "-N",
        250,
        "-F",
        5,
        "--lag",
        50,
        "-r",
        3e-3,
        "-s",
        spec,
        "-t",
        manifest,
        "-e",
        manifest,
    ]
    # When CTC takes off is a matter of luck, twice as late with some seeds as with others.
    ketos("--seed", 7, "train", "-f", "path", "-o", tmp_path / "run", *options)
    (weights,) = (tmp_path / "run").glob("best_*.safetensors")
    assert float(weights.stem.removeprefix("best_")) >= 0.99
    # What validation logs is what a test of the same lines reports, to the last digit.
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    report = tmp_path / "report.json"
    ketos("test", "-m", weights, "-f", "path", "-B", 7, "--json", report, *lines)
    accuracy = 1 - json.loads(report.read_text(encoding="utf-8"))["cer"]
    assert accuracy == max(json.loads(row)["val_accuracy"] for row in rows)
