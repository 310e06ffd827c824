"""Names of settings and cards as other programs have them: each is answered with what is to be typed here, in one line."""

import re
import shlex
from collections.abc import Iterator

import pytest

from lab.doors import synonyms, synonyms_of_cards
from lab.doors.cures import CommandLine, instead_of_card
from lab.doors.pages import card_settings, known_settings
from lab.doors.slips import card_answer, cure, flag_answer, setting_answer, simulated_answer
from lab.doors.words import HYDRA_FLAGS
from lab.run.cards import choices

SETTINGS = [  # what was typed, the first of it being a slip, and the answer
    ("optimizer.learning_rate=0.1", "optimizer.learning_rate=0.1: the setting is optimizer.lr; write optimizer.lr=0.1"),
    ("optimizer.learningRate=0.1", "the setting is optimizer.lr; write optimizer.lr=0.1"),
    ("+optimizer.learning_rate=0.1", "write optimizer.lr=0.1"),
    ("-m optimizer.learning_rate=0.1,0.2", "write optimizer.lr=0.1,0.2"),
    ("lr=0.1", "write optimizer.lr=0.1"),
    ("model.learning_rate=0.1", "write optimizer.lr=0.1"),
    ("model.optimizer.lr=0.1", "write optimizer.lr=0.1"),
    ("Optimizer.LR=0.1", "write optimizer.lr=0.1"),
    ("optim.lr=0.1", "write optimizer.lr=0.1"),
    ("wd=1e-4", "write optimizer.weight_decay=1e-4"),
    ("momentum=0.9", "write optimizer.momentum=0.9"),
    ("nesterov=true", "write optimizer.nesterov=true"),
    ("momentum=0.9 optimizer=adam", "the setting is optimizer.momentum; optimizer=adam has none, rmsprop and sgd have"),
    ("beta1=0.8 optimizer=adam", "the setting is optimizer.betas; write optimizer.betas=[0.8,0.999]"),
    ("batch_size=32", "write data.batch_size=32"),
    ("bs=32", "write data.batch_size=32"),
    ("per_device_train_batch_size=32", "write data.batch_size=32"),
    ("data.train_size=300", "write data.examples=300"),
    ("trainer.max_epochs=10", "trainer.max_epochs=10: the setting is epochs; write epochs=10"),
    ("num_train_epochs=3", "write epochs=3"),
    ("trainer.max_steps=100", "write steps=100"),
    ("training.iterations=100", "write steps=100"),
    ("seed_everything=3", "write seed=3"),
    ("trainer.seed=3", "write seed=3"),
    ("trainer.gradient_clip_val=1.0", "write trainer.clip_norm=1.0"),
    ("max_grad_norm=1.0", "write trainer.clip_norm=1.0"),
    ("clipvalue=0.5", "write trainer.clip_value=0.5"),
    ("trainer.log_every_n_steps=5", "write trainer.log_every=5"),
    ("trainer.val_check_interval=50", "write trainer.evaluate_every=50"),
    ("save_steps=50", "write trainer.checkpoint_every=50"),
    ("num_threads=2", "write trainer.threads=2"),
    ("device=cuda", "device=cuda: write trainer.accelerator=gpu"),
    ("dtype=float64", "write trainer.precision=64-true"),
    ("fp16=true", "trainer.precision= is one of 32-true, 64-true, bf16-mixed"),
    ("trainer.devices=1", "a run is one process on one device; leave it out"),
    ("data.num_workers=4", "no workers load them; leave it out"),
    ("trainer.accumulate_grad_batches=4", "raise data.batch_size"),
    ("trainer.deterministic=true", "every run is seeded throughout"),
    ("trainer.enable_progress_bar=false", "leave it out"),
    ("patience=3", "trainer.stop="),
    ("save_top_k=1", "trainer.keep="),
    ("fast_dev_run=true", "write debug=true"),
    ("use_wandb=true", "write logger=[tensorboard,wandb]"),
    ("logger.zebra=x", "logger= says where numbers go"),
    ("logger.wandb.project=x", "logger= says where numbers go"),
    ("experiment.name=mine", "write name=mine"),
    ("run_name=mine", "write name=mine"),
    ("output_dir=out", "write hydra.run.dir=out"),
    ("-m output_dir=out seed=0,1", "write hydra.sweep.dir=out"),
    ("ckpt_path=outputs/a", "the setting is from; write from=outputs/a"),
    ("trainer.resume_from_checkpoint=a.ckpt", "write from=a.ckpt"),
    ("resume=true", "the same command goes on from where a run was stopped; leave it out"),
    ("resume=false", "hydra.run.dir=DIR; leave it out"),
    ("model.hidden=64", "model.hidden=64: the setting is model.widths; write model.widths=[64]"),
    ("model.hidden_sizes=[64,64]", "write model.widths=[64,64]"),
    ("-m hidden=32,64", "write model.widths=[32],[64]"),
    ("hidden=64 model=resnet", "the setting is model.width; write model.width=64"),
    ("num_layers=3", "model.widths=[32,32] lists the units of each hidden layer"),
    ("num_layers=20 model=resnet", "write model.depth=20"),
    ("dropout=0.1", "no model here has dropout"),
    ("image_size=32", "write data=image_folder data.image_size=32"),
    ("data_dir=/x", "write data=image_folder data.root=/x"),
    ("data.path=/x data=image_folder", "data.path=/x: the setting is data.root; write data.root=/x"),
    ("data.file=/x data=cifar10", "write data.root=/x"),
    ("data.path=a.npz data=tensors", "the setting is data.file; write data.file=a.npz"),
    ("data.path=a.npz", "write data=tensors data.file=a.npz"),
    ("data.root=mine.py:load data=own", "the setting is data.path; write data.path=mine.py:load"),
    ("loss.reduction=sum", "a loss is a mean over examples"),
    ("warmup_steps=50", "write schedule=warmup schedule.steps=50"),
    ("lr_scheduler=CosineAnnealingLR", "the setting is schedule; write schedule=cosine"),
    ("optim=Adam", "the setting is optimizer; write optimizer=adam"),
    ("net=resnet20", "write model=resnet model.depth=20"),
    ("dataset=cifar10", "the setting is data; write data=cifar10"),
    ("criterion=ce", "the setting is loss; write loss=cross_entropy"),
    ("probes=[hessian,noise]", "the setting is probe; write probe=[sharpness,noise]"),
    ("probe.sharpness.freq=5", "the setting is probe.sharpness.every; write probe.sharpness.every=5"),
    ("probe.sharpness.num_eigenvalues=5", "write probe.sharpness.k=5"),
    ("probe.spectrum.lanczos_steps=30", "write probe.spectrum.steps=30"),
    ("probe.sharpness.max_iter=30", "write probe.sharpness.max_matvecs=30"),
    ("probe.batch_sharpness.tolerance=0.1", "write probe.batch_sharpness.rse=0.1"),
    ("hessian.every=5", "write probe.sharpness.every=5"),
    ("probe.every=5", "write probe.sharpness.every=5"),
    ("every=5 probe=[noise]", "write probe.noise.every=5"),
    ("n_jobs=4", "write launcher=joblib launcher.n_jobs=4"),
    (
        "lr=0.1 bs=32 epochs=10 optim=Adam net=resnet20 model=MLP",
        "lr=0.1: the setting is optimizer.lr; write optimizer.lr=0.1; likewise data.batch_size=32 for bs=32, "
        "optimizer=adam for optim=Adam, model=resnet model.depth=20 for net=resnet20, model=mlp for model=MLP",
    ),
]


@pytest.mark.parametrize(("line", "says"), SETTINGS, ids=[line for line, _ in SETTINGS])
def test_a_setting_is_known_by_the_names_of_other_programs(line: str, says: str) -> None:
    words = shlex.split(line)
    name = next(word for word in words if not word.startswith("-")).lstrip("+").partition("=")[0]
    answer = setting_answer(name, words, "train")
    assert answer is not None and "\n" not in answer
    assert answer.endswith(says) if says.startswith("write") else says in answer


@pytest.mark.parametrize(
    "word",
    [
        *("optimizer.lr=0.1", "seed=3", "probe.sharpness.every=3", "data.batch_size=8"),
        *("trainer.zebra=3", "zebra=3", "probe.zebra.every=3", "model.x=3", "optimizer.lr.x=3"),
    ],
)
def test_a_setting_that_is_there_and_one_that_is_like_none_are_no_slips(word: str) -> None:
    assert setting_answer(word.partition("=")[0], [word], "train") is None


CARDS = [
    ("optimizer=SGD", "optimizer=SGD does not exist; write optimizer=sgd"),
    ("optimizer=nesterov", "write optimizer=sgd optimizer.momentum=0.9 optimizer.nesterov=true"),
    ("optimizer=Muon", "write optimizer=own optimizer.path=torch.optim:Muon"),
    ("-m optimizer=SGD,Adam", "write optimizer=sgd,adam"),
    ("model=MLP", "write model=mlp"),
    ("model=ResNet-20", "write model=resnet model.depth=20"),
    ("model=resnet50", "write model=torchvision model.name=resnet50"),
    ("model=VGG16_bn", "write model=torchvision model.name=vgg16_bn"),
    ("model=cnn", "write model=own model.path=FILE.py:CLASS"),
    ("loss=ce", "write loss=cross_entropy"),
    ("loss=CrossEntropyLoss", "write loss=cross_entropy"),
    ("loss=MSELoss", "write loss=mse"),
    ("loss=huber", "write loss=own loss.path=torch.nn.functional:huber_loss"),
    ("data=CIFAR-10", "write data=cifar10"),
    ("data=mnist", "data=mnist does not exist; expected one of cifar10, "),
    ("schedule=none", "write schedule=constant"),
    ("schedule=MultiStepLR", "write schedule=step"),
    ("trainer=gpu", "write trainer.accelerator=gpu"),
    ("probe=none", "write probe=[]"),
    ("probe=Hessian", "write probe=[sharpness]"),
    ("probe=[sharpness,ESD]", "write probe=[sharpness,spectrum]"),
    ("probe=all", "name those you want in a list, of batch_landscape, "),
    ("experiment=eos", "write experiment=quickstart"),
    ("hydra/launcher=sbatch", "write launcher=slurm"),
]


@pytest.mark.parametrize(("line", "says"), CARDS, ids=[line for line, _ in CARDS])
def test_a_card_is_known_by_the_names_of_other_programs(line: str, says: str) -> None:
    words = shlex.split(line)
    group, _, value = words[-1].partition("=")
    assert says in str(card_answer(group, value.split(",")[0].strip("["), words, "train"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lr 0.1", "--lr 0.1: settings are typed without dashes; write optimizer.lr=0.1"),
        ("--trainer.max_epochs=10", "write epochs=10"),
        ("--optimizer.lr=0.1", "write optimizer.lr=0.1"),
        ("-m -lr 0.1", "write optimizer.lr=0.1"),
        ("--gpu --cfg job", "--gpu: settings are typed without dashes; write trainer.accelerator=gpu"),
        (
            "--lr 0.1 --zebra --epochs 3 seed=1",
            "--lr 0.1: settings are typed without dashes; write optimizer.lr=0.1 epochs=3",
        ),
        ("--lr --nesterov --seed", "write optimizer.lr=VALUE optimizer.nesterov=true seed=VALUE"),
        ("--num-workers 4", "--num-workers 4: the data lie in memory"),
    ],
)
def test_a_setting_that_is_typed_as_a_flag_is_answered_too(line: str, says: str) -> None:
    assert says in str(flag_answer(line.split(), HYDRA_FLAGS, "train"))


def test_flags_of_hydra_and_unknown_ones_are_no_settings() -> None:
    for line in ("", "-m --cfg job --config-dir cards", "--multi -c job -sc", "--zebra 3", "x=-3 -0.5"):
        assert flag_answer(line.split(), HYDRA_FLAGS, "train") is None


def test_lab_measure_is_given_its_checkpoint_and_lab_simulate_the_settings_of_its_experiment() -> None:
    found = cure("ckpt_path", "a.pt", CommandLine([]), "measure")
    assert found is not None and found.write == "checkpoint=a.pt"
    known = ["walkers", "lr", "seed", "threads"]
    for word, says in (
        ("num_walkers=3", "write walkers=3"),
        ("optimizer.lr=3", "write lr=3"),
        ("trainer.threads=3", "write threads=3"),
    ):
        assert str(simulated_answer(word.partition("=")[0], [word], known)).endswith(says)
    assert simulated_answer("zebra", ["zebra=3"], known) is None


def test_a_slip_in_a_card_of_the_users_own_is_answered_with_the_name_of_the_setting() -> None:
    words = ["--config-dir=cards", "experiment=mine"]
    assert (
        setting_answer("optimizer.learning_rate", words, "train")
        == "optimizer.learning_rate: the setting is optimizer.lr"
    )


def test_a_slip_beside_cards_of_the_users_own_is_not_told_of_other_settings() -> None:
    assert setting_answer("lr", ["--config-dir=cards", "lr=1", "model.hidden=3"], "train") == (
        "lr=1: the setting is optimizer.lr; write optimizer.lr=1"
    )


def written() -> Iterator[str]:
    """Every word that the tables have people write."""
    tables = [*synonyms.SETTINGS, *synonyms.FITTING.values()]
    tables += [target for targets in synonyms.BY_VALUE.values() for target in targets.values()]
    tables += [target for cards in synonyms_of_cards.CARDS.values() for target in cards]
    tables += [*synonyms.ABSENT]
    for text in tables:
        yield from re.findall(r"(?<![\w.])[a-z_]+(?:[./][a-z_]+)*=[^ ;,]*|^[a-z_./]+$", text)


def test_all_that_the_tables_have_people_write_is_there() -> None:
    words = set(written())
    assert len(words) > 100
    for word in sorted(words):
        name, _, value = word.partition("=")
        if name.startswith(("hydra", "launcher")):
            continue
        assert name in known_settings() or name in ("experiment", "probe"), word
        if choices(name) and re.fullmatch(r"\w+", value):
            assert value in choices(name), word


def test_probes_and_their_settings_in_the_tables_are_there() -> None:
    assert set(synonyms_of_cards.PROBES) == set(choices("probe"))
    there = {name for probe in choices("probe") for name in card_settings("probe", probe)}
    assert set(synonyms.PROBE_SETTINGS) <= there
    simulated = {name for card in choices("simulation") for name in card_settings("simulation", card)}
    assert set(synonyms.SIMULATED) <= simulated | {"seed", "accelerator", "threads"}


def test_no_name_means_two_things() -> None:
    """Of two entries the second would never be reached."""
    for table in (synonyms.SETTINGS, synonyms.GROUPS, synonyms_of_cards.PROBES, *synonyms_of_cards.CARDS.values()):
        names = [name for called in table.values() for name in called.split()]
        assert not {name for name in names if names.count(name) > 1}


def test_no_card_that_is_there_is_answered_with_another_one() -> None:
    for group in synonyms_of_cards.CARDS:
        for card in choices(group):
            assert instead_of_card(group, card) is None, f"{group}={card}"
