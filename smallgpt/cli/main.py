"""The commands: train.py, chat.py, and `smallgpt …` for the rest."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smallgpt import __version__
from smallgpt.cli.arguments import (
    CHAT_SPINS,
    CheckpointPath,
    ConfigFile,
    Device,
    Force,
    OptionalConfigFile,
    Overrides,
    before_torch,
    check_output,
    command,
    config_first,
    is_override,
    run_program,
    typed,
)
from smallgpt.cli.configuration import configuration
from smallgpt.cli.data import data_app
from smallgpt.cli.sentiment import sentiment_app
from smallgpt.cli.serve import serve
from smallgpt.config import CHAT, TRAIN, Config, Dtype
from smallgpt.config_file import find_config, load_config, typed_keys
from smallgpt.utils.commands import script
from smallgpt.utils.errors import UserError
from smallgpt.utils.paths import exists

if TYPE_CHECKING:
    from smallgpt.checkpoints.checkpoint import Checkpoint

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".gguf")

app = typer.Typer(
    name="smallgpt",
    help="Train a small GPT on dialogues, chat with it, and do what belongs to that.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(sentiment_app, name="sentiment")
command(app, "config")(configuration)
command(app, "serve")(serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"smallgpt {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `smallgpt` command."""
    run_program(app)


@command(app)
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a GPT on dialogues; or with preference_loss, on which replies people prefer.

    Example: python train.py config/train90M.yaml data_path=my.txt train_batch=16
    (`smallgpt train train90M …` does the same.)

    Ctrl-C stops after the step in hand and saves; resume_from=latest goes on.
    """
    overrides = overrides or []
    settings = load_config(config, overrides, command=TRAIN)
    before_torch()
    # Only now that the config is known to be good: torch takes a second to import.
    from smallgpt.training import preference, pretrain

    recipe = preference.run if settings.preference_loss else pretrain.run
    recipe(settings, typed("train.py", config, overrides), typed_keys(overrides))


@command(app)
def chat(config: OptionalConfigFile = None, overrides: Overrides = None) -> None:
    """Chat with a trained model, or with the one that comes with Small GPT.

    CONFIG is a YAML file or a model: a checkpoint directory, the folder of a run, a GPT-2
    directory, a .pth file, or box, which is the model that comes with Small GPT and the one you get
    without CONFIG. From a YAML file the model is `resume_from`, by default the best checkpoint in
    `checkpoint_root`.

    Example: python chat.py config/demo.yaml temperature=0.8
    """
    overrides = overrides or []
    if config and is_override(config):
        if named := next((word for word in overrides if "=" not in word), ""):
            start = f"python {script('chat.py')}"
            raise config_first(f"{start} {shlex.quote(named)}", str(config))
        config, overrides = None, [str(config), *overrides]
    before_torch(CHAT_SPINS)
    settings, stored = _chat_settings(config, overrides)
    from smallgpt.chat import chatbot, terminal

    # The weights are made ready while the first line is typed.
    bot = chatbot.load(stored, settings, settings.device, settings.seed, settings.dtype, wait=False)
    terminal.chat(bot)


def _chat_settings(path: Path | None, overrides: list[str]) -> tuple[Config, Checkpoint]:
    """The settings, and the model to chat with: `path` is a config, or names the model itself."""
    from smallgpt.checkpoints.checkpoint import CONFIG_FILE
    from smallgpt.checkpoints.open import box, open_checkpoint

    if path is None:
        if others := sorted(typed_keys(overrides) & {"checkpoint_root", "resume_from"}):
            advice = f"name the model itself: python {script('chat.py')} checkpoints/demo"
            raise UserError(f"{others[0]} goes with a config, and none is given", advice)
        path = box()
    path = path if exists(path) else find_config(path)
    if path.suffix in (".yaml", ".yml") or (path.is_file() and path.suffix not in WEIGHTS_SUFFIXES):
        settings = load_config(path, overrides, command=CHAT)
        named, root = settings.resume_from or "best", Path(settings.checkpoint_root)
        texts = settings.data_paths()
        stored = open_checkpoint(named, root=root, texts=texts, config=path, verify_weights=False)
        return settings, stored
    if "resume_from" in typed_keys(overrides):
        raise UserError(f"both {path} and resume_from name a checkpoint", "give one of them")
    texts = load_config(None, overrides).data_paths()
    stored = open_checkpoint(path, texts=texts, verify_weights=False)
    own = stored.path / CONFIG_FILE if stored.has_checksums else None
    # Its dtype is the one it was trained in.
    return load_config(own, ["dtype=auto", *overrides], command=CHAT), stored


@command(app)
def evaluate(
    path: CheckpointPath,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Dialogue text to measure on; may be given several times."),
    ] = None,
    smalltalk: Annotated[
        bool, typer.Option("--smalltalk", help="Play held-out dialogues of the built-in corpus.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Another checkpoint, to be measured beside it.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Reply to these prompts, one a line, instead of ours."),
    ] = None,
    pairs: Annotated[int, typer.Option(min=0, help="Choices of the right reply.")] = 500,
    replies: Annotated[int, typer.Option(min=0, help="Replies to generate.")] = 200,
    dialogues: Annotated[int, typer.Option(min=1, help="Dialogues of small talk to play.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Measure the model as chat runs it in this precision.")
    ] = None,
    force: Force = False,
) -> None:
    """Measure a checkpoint: on a text, by fitting replies in small talk, or both.

    On a text: loss, choice of the right reply, and what generated replies are like
    (docs/evaluation.md).

    Example: smallgpt evaluate checkpoints/demo --data my.txt
    """
    if not data and not smalltalk:
        raise UserError("nothing to evaluate on", "give --data TEXT or --smalltalk (or both)")
    for name, value in (("--compare", compare), ("--json", json), ("--prompts", prompts)):
        if value and not data:
            raise UserError(f"{name} needs a text to measure on", "give --data TEXT")
    if json:
        check_output([*(data or []), *([prompts] if prompts else [])], [json], force)
    before_torch()
    from smallgpt.checkpoints.open import find_checkpoint
    from smallgpt.evaluation import report, small_talk

    path = find_checkpoint(path)
    play = partial(small_talk.fitting_replies, path, dialogues, seed, device, dtype)
    if data:
        said = report.on_text(
            [path, *([find_checkpoint(compare)] if compare else [])],
            data,
            pairs=pairs,
            replies=replies,
            seed=seed,
            prompts=prompts,
            output=json,
            device=device,
            dtype=dtype,
            small_talk=play if smalltalk else None,
        )
        typer.echo(said)
    else:
        typer.echo(play())


@command(app)
def inspect(path: CheckpointPath) -> None:
    """Show what a checkpoint holds, and check that it is whole."""
    from smallgpt.evaluation.description import describe_checkpoint

    typer.echo(describe_checkpoint(path))


@command(app)
def download(
    names: Annotated[
        list[str],
        typer.Argument(help="pretrained-90M, pretrained-300M, hotel-reviews or chitchat."),
    ],
    folder: Annotated[Path, typer.Option(help="Where data/ and checkpoints/ are.")] = Path(),
) -> None:
    """Fetch published weights or data into the place where the configs look for them.

    An interrupted download goes on where it stopped. HF_ENDPOINT names a mirror of the hub.

    Example: smallgpt download hotel-reviews
    """
    from smallgpt.hub import download

    assets = [download.named(name) for name in names]  # a misspelt one before hours of fetching
    for asset in assets:
        typer.echo(f"{download.fetch(asset, folder)}")


@command(app, "push-ready")
def push_ready(
    path: CheckpointPath,
    output: Annotated[Path, typer.Option(help="The directory to write.")],
    licence: Annotated[
        str, typer.Option("--license", help="For the card: an identifier such as mit.")
    ] = "other",
    about: Annotated[
        Path | None,
        typer.Option(help="For the card: a text in Markdown about what the model is for."),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="For the card: what `smallgpt evaluate --json` wrote.")
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Add a file for llama.cpp.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the weights, by default as they are."),
    ] = None,
) -> None:
    """Make a directory to upload: without training state, with a model card.

    Example: smallgpt push-ready checkpoints/demo/cpt1200 --output demo --license mit
    """
    from smallgpt.hub import publish

    publish.make_ready(
        path,
        output,
        licence,
        for_llama_cpp=gguf,
        dtype=dtype,
        about=about,
        evaluation=evaluation,
    )
    typer.echo(f"written: {output}; read its {publish.CARD_FILE} before you upload it")


@command(app)
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A model; with --to checkpoint, a .pth file, or an adapter to --merge."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The directory or file to write.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="The text the .pth was trained on; may be given several times."),
    ] = None,
    to: Annotated[
        Literal["checkpoint", "original", "gguf"],
        typer.Option(help="original is a .pth file, gguf a file for llama.cpp."),
    ] = "checkpoint",
    quantize: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None,
        typer.Option(help="Precision of a gguf file's matrices; f16 if you do not say."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Make a whole checkpoint of an adapter and its base.")
    ] = False,
) -> None:
    """Write a model in another format: as a checkpoint directory, a legacy .pth or a GGUF file.

    Example: smallgpt convert cpt300M.pth --text data/train.txt --output checkpoints/cpt300M

    Example: smallgpt convert checkpoints/demo --to gguf --output demo.gguf

    Example: smallgpt convert checkpoints/lora --merge --output checkpoints/merged
    """
    if quantize and to != "gguf":
        raise UserError("--quantize is for --to gguf only")
    if merge and to != "checkpoint":
        raise UserError("--merge is for --to checkpoint", f"leave it out: --to {to} merges anyway")
    if output.exists():
        raise UserError(f"--output {output} is there already", "name another, or delete it")
    if to == "checkpoint" and source.is_dir() and not merge:
        advice = "for one whole model of an adapter and its base, add --merge"
        raise UserError(f"{source} is a directory, not a .pth file", advice)
    from smallgpt.checkpoints import adapter, gguf, legacy_pth
    from smallgpt.checkpoints.open import open_checkpoint

    if merge:
        adapter.write_merged(open_checkpoint(source, classifier=None, merge=False), output)
    elif to == "gguf":
        gguf.write(open_checkpoint(source, texts=text), output, quantize or "f16")
    elif to == "original":
        legacy_pth.write(open_checkpoint(source, texts=text), output)
    else:
        legacy_pth.to_checkpoint(source, text or Config().data_paths(), output)
    typer.echo(f"written: {output}")
