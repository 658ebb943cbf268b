"""The memory evaluation: its measure against a model that knows the future, its parts in small."""

import json
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfvgen_planner.cli.main import main
from sfvgen_planner.data.environment import make_env
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation import memory as evaluation
from sfvgen_planner.evaluation import (
    memory_closed_loop,
    memory_config,
    memory_cost,
    memory_plot,
    memory_trials,
)
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED, measure
from sfvgen_planner.evaluation.memory import FIGURES, MemoryConfig
from sfvgen_planner.evaluation.memory_across_episodes import ACROSS_EPISODES_FIGURES
from sfvgen_planner.evaluation.memory_plot import FIGURE, plot_error_against_horizon
from sfvgen_planner.evaluation.memory_variants import (
    VARIANTS,
    TrialMemories,
    attached,
    imagine_returns,
    learn,
    offered,
)
from sfvgen_planner.evaluation.return_trials import draw_trials
from sfvgen_planner.evaluation.statistics import Estimate
from sfvgen_planner.evaluation.tabletop import ENV_ID
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import MEMORY_VARIANTS, EpisodicMemory
from sfvgen_planner.world_model import VideoWorldModel, tiny_world_model
from tests.processes import quick_workers
from tests.tiny_base_model import tiny_base_model

drawn_trials = cache(draw_trials)


@pytest.fixture(scope="module")
def trials():
    return drawn_trials("first", 1, 3, HELD_OUT_SEED, 16)


@pytest.fixture(autouse=True)
def _trials_drawn_once(monkeypatch):
    """Trials are drawn in the simulator; the tests share them."""
    monkeypatch.setattr(memory_trials, "draw_trials", drawn_trials)


@pytest.fixture
def quick(monkeypatch):
    """Memories that learn in one step, and much."""
    few = {"rank": 1, "num_steps": 1, "num_noise_draws": 1, "learning_rate": 0.1}
    for name, config in MEMORY_VARIANTS.items():
        if config is not None and name != "ours":
            monkeypatch.setitem(MEMORY_VARIANTS, name, replace(config, **few))


class PixelModel:
    """Stands in for a world model whose latents are pixels and whose imagination is given."""

    def __init__(self, imagine):
        self.config = SimpleNamespace(num_past_frames=4, num_future_frames=8)
        self.imagine = imagine

    def to(self, device):
        return self

    def register_to_config(self, num_past_frames):
        self.config.num_past_frames = num_past_frames

    def encode(self, frames):
        return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float()

    def decode(self, latents):
        return latents.permute(0, 2, 3, 4, 1).to(torch.uint8).numpy()

    def __call__(self, past, instruction, num_frames, **kwargs):
        last = self.decode(past)[:, -1]
        frames = [self.imagine(*one)[:num_frames] for one in zip(last, instruction, strict=True)]
        return SimpleNamespace(latents=self.encode(np.stack(frames)))


def true_future(trials, last, instruction):
    for trial in trials:
        video = np.concatenate([trial.past[-1:], trial.future])
        for moment, frame in enumerate(video):
            if trial.instruction == instruction and np.array_equal(frame, last):
                still = np.repeat(video[-1:], 8, axis=0)
                return np.concatenate([video, still])[moment + 1 :]
    raise AssertionError("the model was not given the present")


@pytest.mark.parametrize("recall", ["first", "previous"])
def test_the_truth_hits_always_and_a_standing_picture_never(recall, monkeypatch):
    config = MemoryConfig(
        device="cpu",
        num_open_loop_episodes=4,
        variants=("none", "anchor_frame"),
        recalls=(recall,),
        horizons=(2,),
    )
    trials = drawn_trials(recall, 2, 4, HELD_OUT_SEED, 16, 8, 0)
    models = {
        "truth": PixelModel(partial(true_future, trials)),
        "still": PixelModel(lambda last, instruction: np.repeat(last[None], 8, axis=0)),
        "blank": PixelModel(lambda last, instruction: np.full((8, *last.shape), 200, np.uint8)),
    }
    found = {}
    for name, model in models.items():
        monkeypatch.setattr(evaluation, "load_world_model", lambda _, model=model: model)
        found[name] = {
            (figure.name, figure.fields["variant"]): figure.value
            for figure in evaluation.measure_open_loop(config)
        }
        assert model.config.num_past_frames == 4
    for variant in config.variants:
        assert found["truth"]["open_loop_hit_rate_2px", variant] == 1.0
        assert found["truth"]["open_loop_error_px", variant] < 1.5
        assert found["still"]["open_loop_hit_rate_2px", variant] == 0.0
        # Two places are at least 10 cm apart, and a pixel is about 9 mm.
        assert found["still"]["open_loop_error_px", variant] > 7
        assert found["blank"]["open_loop_error_px", variant] == 64
    assert found["truth"]["open_loop_error_px_difference", "anchor_frame"] == 0


@pytest.mark.parametrize("name", ["paper", "original_temp_lora", "no_chunk_input"])
def test_memories_learn_in_a_batch_as_each_does_in_the_wrapper(
    trials, tiny_checkpoint, quick, name
):
    variant = VARIANTS[name]
    # Episodes of different lengths, of which one has a chunk less.
    shorter = replace(trials[1], actions=trials[1].actions[:7], told=trials[1].told[:7])
    with attached(variant, tiny_tabletop(), str(tiny_checkpoint), 2) as memory:
        states = learn(memory, [trials[0], shorter], "")
        assert memory.num_writes == [len(trials[0].actions) // 8, 0]
    model = tiny_tabletop()
    with attached(variant, model, str(tiny_checkpoint)) as memory:
        env = ImaginationWrapper(make_env(ENV_ID, trials[0].env_kwargs), model, memory)
        env.reset(seed=trials[0].seed)
        for action in trials[0].actions:
            env.step(action)
        env.close()
        assert env.past_frames.shape[0] == memory.num_past_frames == (1 if "no_" in name else 4)
        online = memory.state()
    assert states[0].keys() == online.keys()
    # Adam's first step is the gradient's sign, which rounding may turn where there is none.
    alike = [
        torch.isclose(states[0][key].float(), online[key].float(), atol=1e-4) for key in online
    ]
    assert torch.cat([part.flatten() for part in alike]).float().mean() > 0.98


def tiny_tabletop():
    return tiny_world_model(env_id=ENV_ID)


def test_a_control_gets_the_memory_of_another_trial(trials, tiny_checkpoint, quick):
    model, checkpoint = tiny_world_model(), str(tiny_checkpoint)
    own, other = (offered([name], checkpoint)[name] for name in ("paper", "other_episode"))
    memories = TrialMemories(trials)
    with attached(own, model, checkpoint, 2) as memory:
        states = memories.states(own, memory, "")
    with attached(other, model, checkpoint) as memory:
        assert [id(s) for s in memories.states(other, memory, "")] == [
            id(states[row]) for row in (2, 0, 1)
        ]
        with pytest.raises(SfvgenError, match="at least 2 episodes"):
            TrialMemories(trials[:1]).states(other, memory, "")
    assert not [name for name, _ in model.unet.named_parameters() if "lora" in name]


def test_a_control_needs_two_trials_before_anything_is_played():
    variants = [VARIANTS[name] for name in ("none", "other_episode")]
    with pytest.raises(SfvgenError, match="name other variants"):
        next(memory_trials.trial_groups(tiny_tabletop(), MemoryConfig(), 1, variants))


def test_ours_needs_a_checkpoint_that_was_trained_with_it(
    tiny_checkpoint, looped_checkpoint, quick, caplog
):
    assert list(offered([], str(looped_checkpoint))) == list(VARIANTS)
    without = offered([], str(tiny_checkpoint))
    assert set(VARIANTS) - without.keys() == {"ours"}
    assert "ours is left out" in caplog.text
    assert without["other_episode"].memory == "paper"
    with pytest.raises(SfvgenError, match="no slow-fast loop"):
        offered(["none", "ours"], str(tiny_checkpoint))
    model = tiny_world_model()
    trained = load_file(looped_checkpoint / "memory" / "adapter_model.safetensors")
    slow = [tensor for name, tensor in trained.items() if name.endswith("lora_A.weight")]
    for variant in offered(["ours", "other_episode"], str(looped_checkpoint)).values():
        with attached(variant, model, str(looped_checkpoint)):
            own = [p for name, p in model.unet.named_parameters() if ".lora_A." in name]
            assert len(own) == len(slow) > 0
            for tensor in slow:
                assert any(torch.equal(tensor, other) for other in own)


@pytest.mark.parametrize("name", ["paper", "no_local_rule", "no_chunk_input", "ours"])
def test_returns_imagined_in_a_batch_are_those_imagined_alone(
    trials, looped_checkpoint, quick, name
):
    """Three trials, two at a time: the last one is alone in its batch."""
    model, checkpoint = tiny_world_model(), str(looped_checkpoint)
    videos = []
    for num_memories in (1, 2):
        with attached(VARIANTS[name], model, checkpoint, num_memories) as memory:
            states = TrialMemories(trials).states(VARIANTS[name], memory, "")
            videos.append(imagine(model, trials, VARIANTS[name], memory, states))
    plain = imagine(model, trials, VARIANTS["none"])
    assert np.abs(videos[0].astype(int) - videos[1]).max() <= 1
    assert (videos[0] != plain).mean() > 0.05


def test_each_variant_sees_its_own_part_of_the_past(trials, monkeypatch):
    model = tiny_world_model()
    contexts = []
    call = type(model).__call__

    def spy(self, past, **kwargs):
        contexts.append(past)
        return call(self, past, **kwargs)

    monkeypatch.setattr(type(model), "__call__", spy)
    frames = {}
    for name in ("none", "anchor_frame", "long_context"):
        contexts.clear()
        frames[name] = imagine(model, trials[:1], VARIANTS[name])
        past = model.encode(trials[0].past[None])
        first, second = contexts
        if name == "none":
            assert torch.allclose(first, past[:, :, -4:], atol=1e-5)
        elif name == "anchor_frame":
            assert torch.allclose(first, past[:, :, [0, -3, -2, -1]], atol=1e-5)
            assert torch.allclose(second[:, :, 0], past[:, :, 0], atol=1e-5)
        else:
            assert torch.allclose(first, past, atol=1e-5)
            assert second.shape[2] == past.shape[2] + 8
            assert torch.allclose(second[:, :, :-8], past, atol=1e-5)
    assert frames["none"].shape == (1, 16, 64, 64, 3)
    assert model.config.num_past_frames == 4


def test_a_trials_noise_does_not_depend_on_the_others(trials):
    model = tiny_world_model()
    together = imagine(model, trials, VARIANTS["none"])
    alone = np.concatenate([imagine(model, [trial], VARIANTS["none"]) for trial in trials])
    assert np.abs(together.astype(int) - alone).max() <= 1


def imagine(model, trials, variant, memory=None, states=None):
    return imagine_returns(
        model,
        trials,
        variant,
        memory,
        states,
        num_chunks=2,
        num_inference_steps=1,
        guidance_scale=1.0,
        batch_size=2,
        description="",
    )


def run(out, checkpoint, only, **settings):
    config = MemoryConfig.of(str(checkpoint), "cpu", num_episodes=settings.pop("num_episodes"))
    small = {"recalls": ("first",), "horizons": (1,), "num_inference_steps": 1}
    config = replace(config, guidance_scale=1.0, **small, **settings)
    measure(out, config, FIGURES, only)
    return json.loads(out.read_text())["figures"]


def test_every_variant_is_imagined_on_the_same_episodes(tmp_path, tiny_checkpoint, quick):
    out = tmp_path / "memory.json"
    rows = run(out, tiny_checkpoint, ["open_loop_error_px"], num_episodes=2)
    for name in ("open_loop_error_px", "open_loop_hit_rate_2px"):
        found = [row for row in rows if row["name"] == name]
        assert [row["variant"] for row in found] == [n for n in VARIANTS if n != "ours"]
        for row in found[1:]:
            (paired,) = [
                other
                for other in rows
                if (other["name"], other["variant"]) == (f"{name}_difference", row["variant"])
            ]
            assert paired["value"] == pytest.approx(row["value"] - found[0]["value"])
            assert paired["reference"] == "none"
    assert len({tuple(row["seeds"]) for row in rows}) == 1


def test_the_command_measures_and_draws(tmp_path, tiny_checkpoint, capsys):
    out, plot = tmp_path / "memory.json", tmp_path / "memory.png"
    command = ["eval", "memory", "--model", str(tiny_checkpoint), "--device", "cpu"]
    what = ["--variants", "none", "--recalls", "previous", "--horizons", "1", "--episodes", "1"]
    files = ["--out", str(out), "--plot", str(plot)]
    assert main([*command, *what, *files, "--only", "open_loop_error_px"]) == 0
    (row,) = (r for r in json.loads(out.read_text())["figures"] if r["name"] == FIGURE)
    assert (row["variant"], row["recall"], row["horizon"]) == ("none", "previous", 1)
    assert f"{FIGURE} {row['value']:.4g} px of 64" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_every_other_figure_is_measured(tmp_path, tiny_checkpoint, quick, monkeypatch):
    monkeypatch.setattr(memory_config, "MANY_STEPS", 2)
    monkeypatch.setattr(memory_cost, "NUM_BATCHED", 2)
    monkeypatch.setattr(memory_cost, "EPISODE_CHUNKS", (1, 2))
    names = [name for name in FIGURES if not name.startswith("open_loop")]
    variants = ("none", "paper", "anchor_frame")
    rows = run(tmp_path / "a.json", tiny_checkpoint, names, variants=variants, num_episodes=1)
    # Peak memory is known of GPUs only, and this model has been through no loop.
    missing = {
        "fast_learning_memory_overhead",
        "distance_ratio_no_loop",
        *ACROSS_EPISODES_FIGURES,
    }
    assert set(names) - {row["name"] for row in rows} == missing
    assert all(np.isfinite(row["value"]) for row in rows)
    told = {name: [row["variant"] for row in rows if row["name"] == name] for name in names}
    # Another context is no memory: it has neither plans nor a cost of learning.
    assert told["closed_loop_distance_m"] == ["none", "paper"]
    assert told["distance_ratio_no_temp_lora"] == ["paper"]
    assert told["state_kb"] == ["paper"]
    steps = [r["num_inference_steps"] for r in rows if r["name"] == "fast_learning_time_overhead"]
    assert steps == [2, 1]
    assert told["batch_16_cost_ratio"] == ["paper", "paper"]


def test_the_base_models_cost_is_measured_in_place_of_the_models_own(
    tmp_path, looped_checkpoint, quick, monkeypatch
):
    """At each number of steps its overhead is that of the samples which are told beside it."""
    monkeypatch.setattr(memory_cost, "build_base_model", tiny_base_model)
    monkeypatch.setattr(memory_cost, "BASE_MODEL_STEPS", (2, 4))
    monkeypatch.setattr(memory_cost, "MANY_STEPS", 2)
    out = tmp_path / "a.json"
    command = ["eval", "memory", "--model", str(looped_checkpoint), "--device", "cpu"]
    what = ["--base-model", "--variants", "ours", "paper", "--episodes", "1", "--out", str(out)]
    assert main([*command, *what, "--only", "fast_learning_time_overhead"]) == 0
    rows = json.loads(out.read_text())["figures"]
    assert {row["model"] for row in rows} == {memory_cost.BASE_MODEL}
    assert {row["execution"] for row in rows} == {"eager"}
    found = {(row["name"], row["variant"], row["num_inference_steps"]): row for row in rows}
    for steps in (2, 4):
        plain = found.pop(("sample_seconds", "none", steps))
        for variant, draws in (("ours", 4), ("paper", 1)):
            seconds = found.pop(("sample_seconds", variant, steps))
            overhead = found.pop(("fast_learning_time_overhead", variant, steps))
            ratio = seconds["value"] / plain["value"]
            assert overhead["value"] == pytest.approx(ratio - 1)
            assert overhead["num_noise_draws"] == draws
    assert not found


def test_what_the_loop_is_worth_is_a_ratio_of_two_models(
    tmp_path, tiny_checkpoint, looped_checkpoint, quick, monkeypatch
):
    """Ours after the loop, over the paper's before it, each as the closed loop measures it."""
    executed, real = [], memory_closed_loop._returns

    def counted(name, variant, checkpoint, *arguments):
        executed.append((name, checkpoint))
        return real(name, variant, checkpoint, *arguments)

    monkeypatch.setattr(memory_closed_loop, "_returns", counted)
    looped, plain = str(looped_checkpoint), str(tiny_checkpoint)
    sizes = {"num_episodes": 1, "no_loop_model": plain}
    alone = run(tmp_path / "alone.json", looped, ["distance_ratio_no_loop"], **sizes)
    assert executed == [("ours", looped), ("paper", plain)]
    distance, ratio = "closed_loop_distance_m", "distance_ratio_no_loop"
    executed.clear()
    sizes["variants"] = ("none", "ours")
    rows = run(tmp_path / "all.json", looped, [distance, ratio], **sizes)
    # Each variant is executed once, although the ratio needs one of them too.
    assert executed == [("none", looped), ("ours", looped), ("paper", plain)]
    before = run(tmp_path / "b.json", plain, [distance], variants=("paper",), num_episodes=1)

    def told(rows, variant):
        keys = ("name", "model", "variant", "value")
        return [[row[key] for key in keys] for row in rows if row["variant"] == variant]

    pairs = [row for row in rows if "reference" not in row]
    assert told(alone[:-1], "ours") == told(pairs, "ours")
    assert told(alone[:-1], "paper") == told(rows, "paper") == told(before, "paper")
    (found,) = (row for row in alone if row["name"] == ratio)
    (after,) = (row for row in pairs if (row["name"], row["variant"]) == (distance, "ours"))
    (reference,) = (row for row in before if row["name"] == distance)
    assert found["value"] == pytest.approx(after["value"] / reference["value"])
    assert found["reference_model"] == plain


def test_a_model_from_before_the_loop_that_is_missing_is_told_first(
    tmp_path, looped_checkpoint, monkeypatch
):
    monkeypatch.setattr(memory_closed_loop, "trial_groups", None)
    sizes = {"num_episodes": 1, "no_loop_model": "nope"}
    with pytest.raises(SfvgenError, match="no model called nope"):
        run(tmp_path / "a.json", looped_checkpoint, ["distance_ratio_no_loop"], **sizes)


def test_workers_and_episodes_side_by_side_return_what_one_returns(
    tmp_path, looped_checkpoint, monkeypatch
):
    # Each memory learns what it learns wherever and after whichever episode it is played.
    quick_workers(monkeypatch)
    names, found = ["closed_loop_distance_m"], []
    for setting in ({}, {"num_workers": 2}, {"num_envs": 2}):
        sizes = {"num_episodes": 2, "variants": ("ours",), "num_noise_draws": 1, **setting}
        rows = run(tmp_path / f"{len(found)}.json", looped_checkpoint, names, **sizes)
        found.append([(row["name"], row["value"], *row["ci95"]) for row in rows])
    assert found[0] == found[1]
    for one, other in zip(found[0], found[2], strict=True):
        assert one[0] == other[0]
        assert other[1:] == pytest.approx(one[1:], abs=1e-4)


@pytest.mark.parametrize(
    ("option", "name"), [(["--no-loop-model", "before"], "before"), ([], "tabletop")]
)
def test_the_command_is_told_what_the_loop_began_with(tmp_path, monkeypatch, option, name):
    configs = []
    figures = {"distance_ratio_no_loop": lambda config: configs.append(config) or []}
    monkeypatch.setattr(evaluation, "FIGURES", figures)
    assert main(["eval", "memory", "--out", str(tmp_path / "memory.json"), *option]) == 0
    assert [config.no_loop_model for config in configs] == [name]


def test_only_a_long_context_grows_with_the_episode(tiny_checkpoint, quick, monkeypatch):
    lengths, written, real = [], [], VideoWorldModel.__call__

    def spied(model, past, **kwargs):
        lengths.append(past.shape[2])
        return real(model, past, **kwargs)

    monkeypatch.setattr(VideoWorldModel, "__call__", spied)
    write = EpisodicMemory.write_batch
    monkeypatch.setattr(
        EpisodicMemory,
        "write_batch",
        lambda *args, **kwargs: written.append(1) or write(*args, **kwargs),
    )
    config = MemoryConfig.of(str(tiny_checkpoint), "cpu", num_episodes=1)
    config = replace(config, num_inference_steps=1)
    monkeypatch.setattr(memory_cost, "EPISODE_CHUNKS", (1, 3))
    sizes = {"none": [4, 4], "paper": [4, 4], "long_context": [9, 25]}
    for name, wanted in sizes.items():
        figures = list(evaluation.measure_long_episodes(replace(config, variants=(name,))))
        assert [figure.fields["episode_chunks"] for figure in figures] == [1, 3]
        assert all(figure.unit == "s" and figure.value > 0 for figure in figures)
        # Each measurement warms up once; a memory first learns the chunks before.
        assert list(dict.fromkeys(lengths)) == list(dict.fromkeys(wanted))
        assert len(lengths) == 4 + (4 if name == "paper" else 0)
        lengths.clear()
    assert len(written) == 8


def test_the_state_is_as_large_as_its_numbers(tiny_checkpoint, quick):
    config = MemoryConfig(model=str(tiny_checkpoint), device="cpu", variants=("paper",))
    (figure,) = evaluation.measure_state(config)
    model = tiny_world_model()
    EpisodicMemory(model, MEMORY_VARIANTS["paper"])
    numbers = sum(p.numel() for n, p in model.unet.named_parameters() if "lora_" in n)
    assert figure.value * 1000 == 4 * numbers + 8  # and the count of the writes


def test_an_interrupted_run_keeps_what_is_done(tmp_path, tiny_checkpoint, monkeypatch):
    real, calls = evaluation.imagine_returns, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluation, "imagine_returns", interrupted)
    chosen = {"only": ["open_loop_error_px"], "variants": ("none", "anchor_frame")}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.json", tiny_checkpoint, **chosen, num_episodes=1)
    rows = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert [(row["name"], row["variant"]) for row in rows] == [
        ("open_loop_error_px", "none"),
        ("open_loop_hit_rate_2px", "none"),
    ]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--variants", "elephant"], "no variant 'elephant'"),
        (["--recalls", "none"], "no recall 'none'"),
        (["--horizons", "0"], "no horizon 0"),
    ],
)
def test_unknown_choices_are_one_sentence(tmp_path, capsys, option, words):
    out = tmp_path / "a.json"
    assert main(["eval", "memory", "--out", str(out), *option]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_plot_without_figures_is_one_sentence(tmp_path):
    with pytest.raises(SfvgenError, match="has no open_loop_error_px"):
        plot_error_against_horizon(tmp_path / "none.json", tmp_path / "a.png")


def test_models_have_lines_of_their_own(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(memory_plot, "save_figure", lambda figure, out: figures.append(figure))
    row = {"name": FIGURE, "ci95": [0.5, 3.5], "variant": "ours", "recall": "first"}
    rows = [
        {**row, "model": model, "horizon": horizon, "value": value}
        for model, horizon, value in [("a", 1, 1.0), ("b", 2, 2.0), ("a", 2, 3.0)]
    ]
    for count, wanted in [(3, {"ours, a": [1, 3], "ours, b": [2]}), (1, {"ours": [1]})]:
        (tmp_path / "a.json").write_text(json.dumps({"figures": rows[:count]}))
        plot_error_against_horizon(tmp_path / "a.json", tmp_path / "a.png")
        labels = [text.get_text() for text in figures[-1].legends[0].get_texts()]
        lines = figures[-1].axes[0].containers
        drawn = [list(container.lines[0].get_ydata()) for container in lines]
        assert dict(zip(labels, drawn, strict=True)) == wanted


def test_lines_are_told_apart_by_what_differs():
    rows = [
        {"variant": "ours", "model": "a"},
        {"variant": "ours", "model": "a", "num_noise_draws": 1},
        {"variant": "ours", "model": "a", "num_moves_before": 2},
        {"variant": "none", "model": "a"},
        {"variant": "none", "model": "b"},
    ]
    kinds = [memory_plot._kind(row) for row in rows]
    assert [memory_plot._label(kind, kinds) for kind in kinds] == [
        "ours, all noise draws",
        "ours, noise draws: 1",
        "ours, after other moves: 2",
        "none, a",
        "none, b",
    ]


def test_ratios_are_of_means_and_paired():
    ratio = Estimate.of_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert ratio.mean == 0.5
    # Each pair has this ratio, so every resample has it too.
    assert ratio.ci95 == pytest.approx((0.5, 0.5))
    values, references = np.random.default_rng(0).uniform(1, 2, (2, 400))
    ratio = Estimate.of_ratio(values, references)
    # Delta method: the variance of a ratio of means.
    share = values.mean() / references.mean()
    deviation = (values - share * references).std() / references.mean() / np.sqrt(400)
    assert ratio.mean == pytest.approx(share)
    assert np.diff(ratio.ci95)[0] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    for bad in ([[1.0], [0.0]], [[-1.0], [1.0]], [[np.nan], [1.0]], [[], []]):
        with pytest.raises(SfvgenError, match="ratio"):
            Estimate.of_ratio(*bad)


def test_writes_can_be_made_with_fewer_noise_draws(tmp_path, looped_checkpoint, quick, monkeypatch):
    written, real = [], EpisodicMemory.write_batch

    def spied(memory, *args, **kwargs):
        written.append(memory.config.num_noise_draws)
        return real(memory, *args, **kwargs)

    monkeypatch.setattr(EpisodicMemory, "write_batch", spied)
    chosen = {"only": ["open_loop_error_px"], "variants": ("none", "ours"), "num_episodes": 1}
    rows = run(tmp_path / "a.json", looped_checkpoint, num_noise_draws=3, **chosen)
    assert set(written) == {3}
    told = {(row["variant"], row.get("num_noise_draws")) for row in rows}
    assert told == {("none", None), ("ours", 3)}
    with pytest.raises(SfvgenError, match="num_noise_draws must be at least 1, got 0"):
        run(tmp_path / "a.json", looped_checkpoint, num_noise_draws=0, **chosen)
