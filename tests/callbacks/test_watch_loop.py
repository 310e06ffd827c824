"""lab.watch in a plain loop: the right weights wherever the block stands, every update counted once, nothing disturbed."""

import io
import math
from typing import Any

import pytest
import torch
from callbacks.loops import Loss, Training, data, dense_sharpness, network, same
from torch import optim

import lab
from lab.callbacks.watch import Watch
from lab.probes.base import Probe
from lab.probes.sharpness import Sharpness
from lab.probes.spectrum import Spectrum
from lab.settings import SettingError

FORMS = ("update", "body")


def series(watch: Watch) -> dict[int, float]:
    """Step -> ratio of every measurement."""
    return dict(watch.tracker.ratios)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_training_is_bit_identical_with_dropout_batch_norm_and_a_schedule(kind: str, form: str) -> None:
    states = []
    for watched in (False, True):
        training = Training(kind)
        watch = training.watch(probes=["sharpness", "noise"] if kind == "adam" else [Sharpness(every=3)])
        if not watched:
            watch.close()  # a watch that was never begun leaves the optimiser alone
        training.run(8, watch if watched else None, form)
        states.append(training.state())
    assert same(*states)


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_before_the_update_wherever_the_block_stands(form: str) -> None:
    training = Training(norm=False)
    watch = training.watch(probes=[Sharpness(every=3, tol=1e-6)])
    training.run(7, watch, form)
    for step, ratio in series(watch).items():
        lr = 0.1 * 0.97**step
        truth = dense_sharpness(network(norm=False).double(), training.weights[step]) * lr / (2 * 1.9)
        assert ratio == pytest.approx(truth, rel=1e-4), step  # float32 loss, tol 1e-6
    assert list(series(watch)) == [0, 3, 6]
    watch.close()
    assert list(series(watch)) == [0, 3, 6, 7], "and the end"


def test_both_forms_measure_the_same_and_hear_the_same_losses() -> None:
    watches = []
    for form in FORMS:
        training = Training()
        watches.append(training.watch())
        training.run(7, watches[-1], form)
        watches[-1].close()
    assert watches[0].tracker.ratios == watches[1].tracker.ratios
    assert watches[0].tracker.losses == watches[1].tracker.losses and len(watches[0].tracker.losses) == 7


def test_an_update_outside_of_a_block_is_refused_before_it_is_made() -> None:
    training = Training()
    watch = training.watch()
    before = training.state()[:-1]
    Loss(training.model.eval()(data()[0]), data()[1]).backward()
    with pytest.raises(SettingError, match=r"SGD outside of watch.step\(\): write `with watch.step\(\):` round"):
        training.optimizer.step()
    watch.step()  # a statement of its own opens no block
    with pytest.raises(SettingError, match="outside"):
        training.optimizer.step()
    assert same(before, training.state()[:-1])
    watch.close()
    training.optimizer.step()


def test_accumulated_gradients_are_one_step_measured_once_and_their_losses_add_up() -> None:
    training = Training(norm=False)
    watch = training.watch(every=1)
    x, y = data()
    for i in range(6):
        loss = Loss(training.model(x[i::6]), y[i::6]) / 3
        loss.backward()
        with watch.step(loss):
            if i % 3 == 2:
                training.optimizer.step()
                training.optimizer.zero_grad()
    assert list(series(watch)) == [0, 1]
    watch.close()
    assert len(watch.tracker.losses) == 2
    assert watch.tracker.losses[0] == pytest.approx(math.log(3), rel=0.5), "a mean over micro-batches, not a third"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_is_none(fused: bool) -> None:
    model, (x, y) = network(norm=False), data()
    optimizer = optim.SGD(model.parameters(), lr=0.1, fused=fused)
    watch = lab.watch(model, Loss, (x, y), optimizer, probes=[Sharpness(every=1)])
    scaler = torch.amp.GradScaler("cpu")
    for i in range(5):
        with watch.step():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = Loss(model(x), y)
            watch.log({"train/loss": loss})
            scaler.scale(loss * math.inf if i == 2 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
    watch.close()
    assert list(series(watch)) == [0, 1, 2, 3, 4] and len(watch.tracker.losses) == 4
    assert max(watch.tracker.losses) < 2, "the loss of the skipped step is in no other"


def test_an_optimiser_with_a_closure_makes_one_step_and_measures_outside_of_it() -> None:
    model, (x, y) = network(norm=False), data()
    optimizer = optim.LBFGS(model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = Loss(model(x), y)
        loss.backward()
        return loss

    def measuring() -> torch.Tensor:
        with watch.step():
            return closure()

    watch = lab.watch(model, Loss, (x, y), optimizer, probes=[Sharpness(every=1)])
    with pytest.warns(UserWarning, match="no stability threshold is known for LBFGS"), watch.step():
        watch.log({"train/loss": optimizer.step(closure)})
    with watch.step():
        watch.log({"train/loss": optimizer.step(closure)})
    with pytest.raises(SettingError, match="within the closure of an optimiser"), watch.step():
        optimizer.step(measuring)
    watch.close()
    assert len(watch.tracker.losses) == 2 and watch.latest["sharpness/lambda_max"] > 0


def test_nested_blocks_of_one_watch_are_refused_and_two_watches_look_at_one_loop() -> None:
    training = Training(norm=False)
    one, other = training.watch(every=2), training.watch(every=3)
    with pytest.raises(SettingError, match="another block of the same watch"), one.step(), one.step():
        pass
    for _ in range(4):
        loss = Loss(training.model(data()[0]), data()[1])
        loss.backward()
        with one.step(loss), other.step(loss):
            training.optimizer.step()
    assert (list(series(one)), list(series(other))) == ([0, 2], [0, 3])


def test_two_updates_of_one_optimiser_in_a_block_are_said_and_of_two_optimisers_are_one_step() -> None:
    model, (x, y) = network(norm=False), data()
    optimizers = [optim.SGD(model[0].parameters(), lr=0.1), optim.Adam(model[2].parameters(), lr=0.01)]
    watch = lab.watch(model, Loss, (x, y), optimizers, probes=[Sharpness(every=1)])
    for _ in range(2):
        Loss(model(x), y).backward()
        with watch.step():
            for optimizer in optimizers:
                optimizer.step()
    with pytest.warns(UserWarning, match="SGD made 2 updates in one block"), watch.step():
        [optimizers[0].step() for _ in range(2)]
    watch.close()
    assert watch.summary()["threshold_formula"] and list(series(watch)) == [1, 2, 3], "Adam has no state at step 0"


def test_an_update_by_an_optimiser_that_was_not_given_is_said() -> None:
    training = Training(norm=False)
    watch = training.watch()
    stranger = optim.SGD(training.model.parameters(), lr=0.1)
    Loss(training.model(data()[0]), data()[1]).backward()
    with pytest.warns(UserWarning, match="none of the optimisers given to lab.watch"), watch.step():
        stranger.step()


def test_where_no_loss_is_given_it_is_that_of_the_probe_set_at_every_measurement() -> None:
    training = Training(norm=False)
    model, truth = training.model, []
    with training.watch(every=2) as watch:
        for i in range(4):
            training.optimizer.zero_grad()
            Loss(model(data()[0]), data()[1]).backward()
            truth += [Loss(model(data()[0]), data()[1]).item()] if i % 2 == 0 else []
            with watch.step():
                training.optimizer.step()
    assert watch.tracker.losses == []
    assert watch.ends == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_loop_that_goes_on_from_a_checkpoint_of_its_own_measures_what_the_whole_one_does(form: str) -> None:
    whole = Training()
    watch = whole.watch()
    whole.run(10, watch, form)
    watch.close()

    first = Training()
    begun = first.watch()
    first.run(5, begun, form)
    file = io.BytesIO()
    parts = {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict(), "watch": begun.state_dict()}
    torch.save(parts | {"schedule": first.schedule.state_dict(), "random": torch.get_rng_state()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = Training()
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.schedule.load_state_dict(state["schedule"])
    resumed = second.watch()
    resumed.load_state_dict(state["watch"])
    torch.set_rng_state(state["random"])
    second.run(5, resumed, form)
    resumed.close()

    assert same(whole.state(), second.state())
    assert resumed.tracker.ratios == watch.tracker.ratios
    assert resumed.tracker.losses == watch.tracker.losses and len(watch.tracker.losses) == 10


def test_a_probe_that_fails_ends_no_loop() -> None:
    class Broken(Probe):
        name = "broken"
        every = 1
        looks = staticmethod(lambda *_: 1 / 0)

    training = Training(norm=False)
    watch = training.watch(probes=[Broken(), Sharpness(every=2)])
    with pytest.warns(UserWarning, match="probe broken failed at step 0"):
        training.run(3, watch)
    assert watch.failures.counts == {"broken": 3} and list(series(watch)) == [0, 2]


def test_layers_thawed_in_the_loop_are_followed_and_a_loop_under_no_grad_is_measured() -> None:
    training = Training(norm=False)
    training.model[0].requires_grad_(False)
    watch = training.watch(every=1)
    with torch.no_grad():
        for i in range(3):
            training.model[0].requires_grad_(i > 0)
            with torch.enable_grad():
                Loss(training.model(data()[0]), data()[1]).backward()
            with watch.step():
                training.optimizer.step()
    assert list(series(watch)) == [0, 1, 2]
    assert watch.bench.live.params[0] is training.model[0].weight


def test_a_compiled_model_is_measured_as_the_one_inside() -> None:
    ratios = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        training = Training(norm=False)
        training.model = wrap(training.model)
        watch = training.watch()
        training.run(4, watch)
        ratios.append(watch.tracker.ratios)
    assert ratios[0] == ratios[1]


def test_modes_that_change_within_the_block_are_said() -> None:
    training = Training()
    watch = training.watch(every=1)
    training.run(1, watch)
    training.model.eval()

    def update() -> None:
        with watch.step():
            training.model.train()
            Loss(training.model(data()[0]), data()[1]).backward()
            training.optimizer.step()

    with pytest.warns(UserWarning, match="another mode"):
        update()


def test_batch_norm_without_a_known_batch_size_is_said_and_probes_of_batches_are_refused() -> None:
    training = Training()
    with pytest.warns(UserWarning, match="BatchNorm, and the batch size of training is not known"):
        training.run(1, training.watch(batch_size=None))
    watch = Training().watch(probes=["sharpness", "noise"], batch_size=None)
    with pytest.raises(SettingError, match=r"noise depends on how many examples .* batch_size=32"), watch.step():
        pass


def test_a_run_whose_weights_are_lost_has_diverged() -> None:
    training = Training(norm=False)
    watch = training.watch(every=1)
    training.run(2, watch)
    torch.nn.init.constant_(training.model[0].weight, math.nan)
    training.run(2, watch)
    watch.close()
    assert str(watch.tracker.phase) == "diverged" and watch.failures.counts == {}


def bad() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], str]]:
    model, (x, y) = network(), data()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    four = (model, Loss, (x, y), optimizer)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    return {
        "probe": (four, {"probes": ["sharpnes"]}, "'sharpnes' is no probe; did you mean 'sharpness'"),
        "class": (four, {"probes": [Spectrum]}, "'Spectrum' is no probe; did you mean 'spectrum'"),
        "number": (four, {"probes": 3}, "'int' is no probe; expected one of batch_landscape"),
        "examples": (four, {"probes": [Sharpness(examples=99)]}, "examples=99 is larger than the 32 training"),
        "batch": (four, {"batch_size": 0}, "batch_size=0: expected a positive number of examples"),
        "word": (four, {"batch_size": "ful"}, "batch_size='ful': expected"),
        "steps": (four, {"steps": "ten"}, "steps='ten': expected the updates of the whole run"),
        "folder": (four, {"folder": 3}, "folder is a int; expected a path"),
        "order": ((Loss, model, (x, y), optimizer), {}, "model is a function; expected a torch.nn.Module"),
        "loss": ((model, (x, y), Loss, optimizer), {}, "loss is a tuple; expected a function"),
        "schedule": ((model, Loss, (x, y), schedule), {}, "optimizer is a StepLR; expected a torch.optim.Optimizer"),
        "params": ((model, Loss, (x, y), model.parameters()), {}, "optimizer is a generator; expected"),
    }


@pytest.mark.parametrize("name", bad())
def test_a_slip_gets_one_line(name: str) -> None:
    arguments, settings, line = bad()[name]
    with pytest.raises(SettingError, match=line) as refused:
        lab.watch(*arguments, **settings)
    assert "\n" not in str(refused.value)


def test_calls_in_the_wrong_place_get_one_line() -> None:
    training = Training(norm=False)
    watch = training.watch()
    for loss, line in ((torch.ones(3), "the shape"), ("low", "is a str")):
        with pytest.raises(SettingError, match=line), watch.step(loss):  # type: ignore[arg-type]
            pass
    with pytest.raises(SettingError, match="that of an update"):
        watch.log({"train/loss": 1.0})
    with pytest.raises(SettingError, match="before the loop"):
        watch.load_state_dict({})
    watch.close()
    watch.close()
    with pytest.raises(SettingError, match="closed"), watch.step():
        pass
    with pytest.raises(SettingError, match="no optimiser"), lab.watch(training.model, Loss, data()).step():
        pass


def test_names_of_probes_are_cards_with_the_usual_settings() -> None:
    watch = Training().watch(probes="spectrum")
    assert watch.probes == [Spectrum()]
