"""The configuration: everything wrong is said at once, with its line."""

import json
from pathlib import Path

import pytest
import yaml

from sidecar.config import FlagConfig, ModelConfig, SidecarConfig, SpikeConfig, load, load_policy
from sidecar.errors import ConfigError

pytestmark = pytest.mark.unit


def write(folder: Path, text: str) -> Path:
    """Write a configuration file and return its path."""
    path = folder / "sidecar.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_mapping_is_a_complete_configuration(tmp_path: Path) -> None:
    """Every key has a default."""
    found = load(write(tmp_path, "{}"))

    assert SidecarConfig() == found


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    """One run shows all that is to be mended."""
    text = """\
listen:
  grpc: ["0.0.0.0:50061"]
models:
  - name: lite0
    weights: missing.safetensors
flags:
  - feature: lite0/x/chanel/3
  - feature: lite1/x/channel/3
statistcs: {}
spike:
  factor: high
  quantile: 2
"""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))

    lines = caught.value.message.splitlines()
    assert len(lines) == 7
    found = "\n".join(line.split("sidecar.yaml:")[1] for line in lines)
    assert "2: listen.grpc.0: '0.0.0.0:50061' is reachable from other machines" in found
    assert "5: models.0.weights" in found
    assert "does not exist" in found
    assert "6: flags: model 'lite1' is not under models" in found
    assert "7: flags.0.feature" in found
    assert "9: statistcs: unknown key: check its spelling" in found
    assert "11: spike.factor" in found
    assert "12: spike.quantile" in found


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "a: b: c",
        "\t",
        "3",
        "",
        "!!python/object:os.system x",
        "log_level: 2024-13-45",
        "log_level: !!int abc",
        "[" * 5000,
        "flags: []\nflags: []",
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Lists, broken YAML and YAML that would run code give an error, not a traceback."""
    with pytest.raises(ConfigError, match=r"sidecar\.yaml"):
        load(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path that was looked at is in the message."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_relative_paths_belong_to_the_folder_of_the_file(tmp_path: Path) -> None:
    """A configuration works from any working directory."""
    (tmp_path / "labels.json").write_text(json.dumps(["a"]), encoding="utf-8")
    (tmp_path / "code").mkdir()
    text = "state_dir: state\nmodels: [{name: m, labels: labels.json}]\njobs: {python_path: [code]}"

    found = load(write(tmp_path, text))

    assert tmp_path / "state" == found.state_dir
    assert (tmp_path / "labels.json",) == (found.models[0].labels,)
    assert [tmp_path / "code"] == found.jobs.python_path


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "sidecar.example:80", "192.168.1.2:9"]
)
def test_listening_beyond_this_machine_is_an_error(address: str) -> None:
    """Without TLS and authentication nothing but loopback and sockets may listen."""
    with pytest.raises(ValueError, match="reachable from other machines"):
        SidecarConfig.model_validate({"listen": {"grpc": [address]}})


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:5", "[::1]:5", "unix:///run/a.sock"])
def test_loopback_and_sockets_are_allowed(address: str) -> None:
    """The addresses of one machine are fine."""
    found = SidecarConfig.model_validate({"listen": {"grpc": [address]}})

    assert [address] == found.listen.grpc


def test_a_flag_on_a_model_nobody_configured_is_an_error() -> None:
    """A typing error in a flag does not silently watch nothing."""
    with pytest.raises(ValueError, match="'lite1' is not under models"):
        SidecarConfig(
            models=[ModelConfig(name="lite0")], flags=[FlagConfig(feature="lite1/x/channel/1")]
        )


def test_a_default_recipe_is_checked_at_start_up() -> None:
    """A recipe no job could run with is found before the first alert."""
    with pytest.raises(ValueError, match=r"recipe\.steps 0 is outside"):
        SidecarConfig.model_validate({"jobs": {"recipe": {"steps": 0}}})
    with pytest.raises(ValueError, match=r"recipe\.stepz is unknown"):
        SidecarConfig.model_validate({"jobs": {"recipe": {"stepz": 3}}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "lite1"}, "d: model 'lite1' is not under models"),
        ({"file": "d.txt"}, "ends in none of .npy, .safetensors"),
        ({"file": "gone.npy"}, "gone.npy does not exist"),
        ({"digest": "abc"}, "'abc' is no sha256"),
        ({"layer": "a b"}, "layer 'a b' is not a name"),
        ({"labels": ["7"]}, "direction '7' would be taken for a row: add a letter"),
        ({"labels": ["a/b"]}, "direction 'a/b' is not a name"),
        ({"labels": ["a", "a"]}, "'a' is there twice"),
    ],
)
def test_a_dictionary_that_cannot_be_is_refused_at_start_up(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """Each value is named with what is wrong with it."""
    for name in ("d.npy", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    changed = {"name": "d", "model": "m", "layer": "x", "file": "d.npy", **changes}
    if "labels" in changes:
        (tmp_path / "labels.json").write_text(json.dumps(changes["labels"]), encoding="utf-8")
        changed["labels"] = "labels.json"
    text = yaml.safe_dump({"models": [{"name": "m"}], "dictionaries": [changed]})

    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text))

    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("second", "words"),
    [({"name": "d", "layer": "y"}, "'d' is there twice"), ({"name": "e"}, "dictionary of m/x")],
)
def test_a_layer_has_one_dictionary(tmp_path: Path, second: dict[str, str], words: str) -> None:
    """A row's number must say which vector is meant, and a name which dictionary."""
    (tmp_path / "d.npy").write_bytes(b"")
    first = {"name": "d", "model": "m", "layer": "x", "file": "d.npy"}
    text = yaml.safe_dump({"models": [{"name": "m"}], "dictionaries": [first, first | second]})

    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text))

    assert words in str(refused.value)


def test_defaults_survive_a_round_trip_through_yaml(tmp_path: Path) -> None:
    """What the program prints as its configuration is a configuration."""
    text = yaml.safe_dump(SidecarConfig().model_dump(mode="json"))

    assert SidecarConfig() == load(write(tmp_path, text))


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "localhost.example.com", "127.1"])
def test_a_name_that_only_looks_like_loopback_is_refused(tmp_path: Path, host: str) -> None:
    """A name may resolve to any address; only localhost and real loopback addresses are sure."""
    with pytest.raises(ConfigError, match="reachable from other machines"):
        load(write(tmp_path, f"listen: {{web: '{host}:80'}}"))


@pytest.mark.parametrize("address", ["127.0.0.2:1", "localhost:1", "[::1]:1"])
def test_loopback_addresses_are_taken(tmp_path: Path, address: str) -> None:
    """In either family."""
    assert address == load(write(tmp_path, f"listen: {{web: '{address}'}}")).listen.web


@pytest.mark.parametrize("text", ["{", '{"0": "cat"}', "[1]", "3"])
def test_labels_that_are_no_list_of_names_are_refused(tmp_path: Path, text: str) -> None:
    """They are read at start-up, when somebody is there to mend them."""
    (tmp_path / "labels.json").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=r"models\.0\.labels"):
        load(write(tmp_path, "models: [{name: m, labels: labels.json}]"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("factory: 'a.b:c', onnx: m.onnx", "factory 'a.b:c' and onnx .*m.onnx' are two models"),
        ("weights: m.onnx", "weights .*m.onnx' are loaded into what a factory returns"),
        ("onnx: gone.onnx", "models.0.onnx: .*gone.onnx does not exist"),
        ("factory: 'a:b', gradients: false", "gradients: false is for onnx models"),
        ("onnx: m.onnx, digest: 4f", "models.0.digest: '4f' is no sha256"),
        ("input: {height: 224}", "height and width come together"),
        ("input: {size: 224, height: 224, width: 192}", "size is of a square input"),
        ("input: {range: [0, 255]}", r"range \[0, 255\] needs mean and std in its units"),
        ("input: {range: [-1, 1]}", r"\[-1, 1\] is neither \[0, 1\] nor \[0, 255\]"),
        ("input: {channels: grb}", "models.0.input.channels: .*'rgb' or 'bgr'"),
        ("input: {layout: chw}", "models.0.input.layout: .*'nchw' or 'nhwc'"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused_by_field_and_value(
    tmp_path: Path, model: str, words: str
) -> None:
    """The keys of models, and of what images they take."""
    (tmp_path / "m.onnx").write_bytes(b"?")

    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, f"models: [{{name: m, {model}}}]"))


def test_an_onnx_model_is_found_beside_the_file_and_can_be_loaded(tmp_path: Path) -> None:
    """A relative path, a shape that is not square, and the units of bytes."""
    (tmp_path / "m.onnx").write_bytes(b"?")
    text = (
        "models: [{name: m, onnx: m.onnx, gradients: false, input: {height: 192, width: 256, range: "
        "[0, 255], mean: [104, 117, 123], std: [1, 1, 1], channels: bgr, layout: nhwc}}, {name: n}]"
    )

    found = load(write(tmp_path, text)).models

    assert tmp_path / "m.onnx" == found[0].onnx
    assert [0, 255] == found[0].input.range
    assert (True, False) == (found[0].is_loadable, found[1].is_loadable)


def test_a_feature_that_is_flagged_twice_is_named(tmp_path: Path) -> None:
    """Only one of the two names and owners could be told; the two spellings are one feature."""
    flags = "flags: [{feature: m/a/channel/1}, {feature: m/a/channel/1;max}]"

    with pytest.raises(ConfigError, match="flags: m/a/channel/1 is there twice"):
        load(write(tmp_path, "models: [{name: m}]\n" + flags))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": {"device": "tpu:9"}}, "jobs.device"),
        ({"jobs": {"python_path": ["/nowhere/at/all"]}}, "/nowhere/at/all is not a folder"),
        ({"spike": {"false_alarms_per_1000_days": 0}}, "spike.false_alarms_per_1000_days"),
        ({"spike": {"factor": 1.0}}, "spike.factor"),
        ({"spike": {"lag_windows": 0}}, "spike.lag_windows"),
        ({"spike": {"long_windows": 12}}, "spike.long_windows: unknown key: .* level_windows"),
        ({"spike": {"long_factor": 2}}, "spike.long_factor: unknown key: .* baseline_factor"),
        ({"spike": {"min_exceedances": 3}}, "spike.min_exceedances: .* evidence weighs few"),
        (
            {"spike": {"false_alarm_probability": 0.1}},
            "spike.false_alarm_probability: .* false_alarms_per_1000_days",
        ),
        ({"spike": {"pending_windows": 3}}, "spike.pending_windows: .* without a wait"),
    ],
)
def test_settings_no_job_or_window_could_work_with_are_found_at_start_up(
    tmp_path: Path, settings: dict, message: str
) -> None:
    """They would otherwise show in the first alert."""
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, yaml.safe_dump(settings)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 1}, "factor"),
        ({"direction": "up"}, "direction"),
        ({"detectors": []}, "detectors"),
        ({"detectors": ["spikes"]}, "detectors"),
        ({"slice": {"route": "a b"}}, "slice route='a b': use 1 to"),
        ({"slice": {str(i): "x" for i in range(40)}}, "slice has 40 keys"),
    ],
)
def test_how_a_flag_is_watched_is_checked(tmp_path: Path, settings: dict, message: str) -> None:
    """A flag that could never be told apart or counted is found at start-up."""
    document = {"models": [{"name": "m"}], "flags": [{"feature": "m/a/channel/1"} | settings]}

    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, yaml.safe_dump(document)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"screen": {"clear_ratio": 0.2, "layer_ratio": 0.1}},
            "screen.clear_ratio: 0.2 is above layer_ratio 0.1: .* use at most 0.1",
        ),
        ({"screen": {"layer_ratio": 0.01}}, "screen.clear_ratio: 0.025 is above layer_ratio 0.01"),
        (
            {"recording": {"levels": [0.99, 0.999, 0.99]}},
            "recording.levels: 0.99 is there twice",
        ),
        (
            {"models": [{"name": "m"}]}
            | {"flags": [{"feature": "m/a/channel/1", "detectors": ["spike", "spike"]}]},
            "flags.0.detectors: 'spike' is there twice",
        ),
        (
            {"recording": {"segment_bytes": 200_000, "limit_bytes": 100_000}},
            "segment_bytes: 200000 is above limit_bytes 100000: .* limit, 25000",
        ),
        ({"statistics": {"window_seconds": 3601}}, "statistics.window_seconds: .* 3600"),
        (
            {"spike": {"false_alarms_per_1000_days": 86_400}},
            "spike: false_alarms_per_1000_days 86400 leaves .*\\.window_seconds 10 use less than 86400",
        ),
        (
            {
                "spike": {"false_alarms_per_1000_days": 1000},
                "statistics": {"window_seconds": 900},
                "log_level": "loud",
            },
            "window_seconds 900 use less than 960",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_found_at_start_up(
    tmp_path: Path, settings: dict, message: str
) -> None:
    """Each is in its range, and together they make no sense; something wrong elsewhere hides none."""
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, yaml.safe_dump(settings)))


@pytest.mark.parametrize(
    "settings",
    [
        {"screen": {"clear_ratio": 0.1, "layer_ratio": 0.1}},
        {"recording": {"limit_bytes": 0, "segment_bytes": 200_000}},
        {"recording": {"limit_bytes": 200_000, "segment_bytes": 200_000}},
        {"recording": {"limit_bytes": 200_000}},
        {"recording": {"levels": []}},
        {"statistics": {"window_seconds": 3600}},
        {"spike": {"false_alarms_per_1000_days": 86_399}},
    ],
)
def test_settings_at_the_edge_of_a_contradiction_are_taken(tmp_path: Path, settings: dict) -> None:
    """Equal shares are no contradiction, and of a small limit a quarter is a segment anyway."""
    found = load(write(tmp_path, yaml.safe_dump(settings))).model_dump()

    for section, values in settings.items():
        assert values.items() <= found[section].items()


def test_a_recording_too_small_to_hold_anything_is_refused() -> None:
    """Nothing at all is a choice, a few bytes are a mistake."""
    assert (
        0 == SidecarConfig.model_validate({"recording": {"limit_bytes": 0}}).recording.limit_bytes
    )
    with pytest.raises(ValueError, match="1000 bytes hold no recording: use at least 65536"):
        SidecarConfig.model_validate({"recording": {"limit_bytes": 1000}})


def test_a_policy_is_read_from_a_configuration_of_another_machine(tmp_path: Path) -> None:
    """What it says of weights and folders that are not here is not looked into."""
    path = tmp_path / "policy.yaml"
    path.write_text(
        "models: [{name: tiny, weights: /nowhere}]\nspike: {factor: 3.0}\n"
        "flags: [{feature: tiny/conv/channel/1, factor: 2.5}]\n"
    )

    found = load_policy(path)

    assert (3.0, 2.5) == (found.spike.factor, found.flags[0].factor)


def test_a_policy_may_be_the_spike_settings_alone(tmp_path: Path) -> None:
    """A file of one line is a policy; an empty mapping is the default one."""
    path = tmp_path / "policy.yaml"

    path.write_text("factor: 3.0\n")
    bare = load_policy(path)
    path.write_text("{}\n")

    assert 3.0 == bare.spike.factor
    assert SpikeConfig() == load_policy(path).spike


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "level_windows: 15\nfacter: 3\nfactor: 0.5\nlong_windows: 12\nquantile: 2\n",
            [
                "2: facter: unknown key: check its spelling and place; a policy has the keys of spike",
                "3: spike.factor: Input should be greater than 1",
                "4: long_windows: unknown key: it is gone, remove it; level_windows says",
                "5: spike.quantile: Input should be less than 1",
            ],
        ),
        (
            "factor: 3\nflags:\n  - feature: nonsense\nspike:\n  quantile: 2\n  facter: 3\n  pending_windows: 2\n",
            [
                "1: factor: unknown key: check its spelling and place; a policy has the keys of spike",
                "3: flags.0.feature: ",
                "5: spike.quantile: Input should be less than 1",
                "6: spike.facter: unknown key: check its spelling and place, or remove it",
                "7: spike.pending_windows: unknown key: it is gone, remove it; a spike fires as soon",
            ],
        ),
    ],
)
def test_every_fault_of_a_policy_is_named_with_its_line(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    """One run shows all that is to be mended, unknown keys and wrong values alike."""
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_policy(path)

    found = [line.split("sidecar.yaml:")[1] for line in caught.value.message.splitlines()]
    assert len(expected) == len(found)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


@pytest.mark.parametrize("place", ["s3://", "s3://user:secret@bucket/x", "://bucket", "a b://c"])
def test_a_place_for_artifacts_that_is_none_is_refused(tmp_path: Path, place: str) -> None:
    """No bucket, no protocol, or a secret in the URL, which the message does not spell out."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(f"state_dir: {tmp_path}\nstore: {{artifacts: '{place}'}}\n")

    with pytest.raises(ConfigError, match=r"store\.artifacts") as caught:
        load(path)
    assert "credentials in the environment" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_of_artifacts_is_relative_to_the_file_and_a_url_is_not(tmp_path: Path) -> None:
    """As every other path of the configuration."""
    path = tmp_path / "sidecar.yaml"
    found = []
    for place in ("kept", "/abs/kept", "s3://bucket/prefix"):
        path.write_text(f"state_dir: {tmp_path}\nstore: {{artifacts: '{place}'}}\n")
        found.append(load(path).store.artifacts)

    assert [str(tmp_path / "kept"), "/abs/kept", "s3://bucket/prefix"] == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "jobs: {reliability: {dataset: photos}}",
            "reliability.dataset 'photos' is not under datasets",
        ),
        ("jobs: {reliability: {seeds: 17}}", "jobs.reliability.seeds"),
        ("jobs: {reliability: {seeds: -1}}", "jobs.reliability.seeds"),
        ("jobs: {reliability: {share: 0}}", "jobs.reliability.share"),
        ("jobs: {reliability: {sede: 3}}", "sede: unknown key: check its spelling"),
        (
            "models: [{name: a, sibling: b}]",
            "a: sibling 'b' is not another model under models",
        ),
        (
            "models: [{name: a, sibling: a}]",
            "a: sibling 'a' is not another model under models",
        ),
    ],
)
def test_what_reports_on_portraits_need_is_checked_at_the_start(
    tmp_path: Path, text: str, words: str
) -> None:
    """A name that leads nowhere or a number out of range is refused, not found out by a job."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))

    assert words in caught.value.message


def test_photographs_and_a_sibling_that_are_there_are_taken(tmp_path: Path) -> None:
    """Both names are those of other sections."""
    (tmp_path / "photos").mkdir()
    found = load(
        write(
            tmp_path,
            f"""\
models: [{{name: a, sibling: b}}, {{name: b}}]
datasets: [{{name: photos, folder: {tmp_path / "photos"}}}]
jobs: {{reliability: {{dataset: photos, seeds: 0}}}}
""",
        )
    )

    assert ("photos", 0) == (found.jobs.reliability.dataset, found.jobs.reliability.seeds)
    assert ["b", None] == [model.sibling for model in found.models]
