"""`cskt push`: a run or an export with its model card, on the Hugging Face Hub."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cskt import __version__
from cskt.cli.parsing import Parser, command_line
from cskt.cli.run_results import is_run, is_stale
from cskt.config import RunConfig
from cskt.config.schema import NO_METHOD
from cskt.data.mixing import sources_of
from cskt.embed.hub import CARD
from cskt.errors import CsktError
from cskt.evaluation.results import EVALUATIONS, Result, load_result
from cskt.export.shared_folder import SharedModel, is_public, write_shared
from cskt.export.upload import check_repository, check_token, upload
from cskt.model.io.cache import sha256_of
from cskt.model.parts import PARTS
from cskt.plugins import Requirement
from cskt.report.model_card import CardFacts, model_card
from cskt.training.events import first_event, last_event, read_events
from cskt.utils.files import write_atomically

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Upload a model to the Hugging Face Hub, as a folder that cskt.load takes: what the run trained and its config, or the
graphs of an export, and a model card. Data, captions, identities, results per query, checkpoints and paths of this
machine are left out. Token: HF_TOKEN, or 'hf auth login'."""
EXAMPLES = """\
examples:
  cskt push logs/cuhk-pedes/RUN me/cskt-cuhk --dry-run card     write the folder, and upload nothing
  cskt push logs/cuhk-pedes/RUN me/cskt-cuhk --private
  cskt index my-gallery --images crops --model hf:me/cskt-cuhk"""


def main(argv: Sequence[str]) -> int:
    """See `cskt push --help`."""
    parser = Parser(prog="cskt push", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    # fmt: off
    add("model", type=Path, metavar="RUN", help="run folder, file of `cskt export --merge`, or folder of `--format`")
    add("repository", metavar="REPO", help="owner/name; created if there is none")
    add("--private", action="store_true", help="create a private repository; a public one is refused")
    add("--revision", metavar="BRANCH", help="branch to commit to; created if there is none (default: main)")
    add("--license", metavar="ID", help="licence of the weights, as the Hub writes it: mit, cc-by-nc-4.0, ...")
    add("--message", metavar="TEXT", help="message of the commit (default: names the run)")
    add("--dry-run", type=Path, metavar="FOLDER", help="write the folder here instead, and upload nothing")
    # fmt: on
    flags = parser.parse(argv)
    repository = check_repository(flags.repository)
    if not flags.model.exists():
        raise CsktError(f"{flags.model}: no such run, file or export")
    if flags.dry_run:
        if flags.dry_run.exists() and (not flags.dry_run.is_dir() or any(flags.dry_run.iterdir())):
            raise CsktError(f"--dry-run {flags.dry_run}: holds something already; name another folder")
        write_folder(flags.model, flags.dry_run, repository, flags.license)
        print(f"{flags.dry_run}: {', '.join(sorted(path.name for path in flags.dry_run.iterdir()))}")
        return 0
    check_token()
    with tempfile.TemporaryDirectory(prefix="cskt-push-") as place:
        name = write_folder(flags.model, Path(place), repository, flags.license)
        pushed = upload(
            Path(place), repository, version=__version__, message=flags.message or f"{name}, with cskt {__version__}",
            private=flags.private, revision=flags.revision,
        )  # fmt: skip
    branch = f"@{flags.revision}" if flags.revision else ""
    print(f"{pushed}\nLoad it: {command_line('evaluate', f'hf:{repository}{branch}')}")
    return 0


def write_folder(model: Path, folder: Path, repository: str, license_id: str | None) -> str:
    """Write what is uploaded of a model into a folder, and return the model's name."""
    shared = write_shared(model, folder)
    results = current_results(model)
    if not results:
        logger.warning(
            "%s: no results for its model card; for figures type: %s", model, command_line("evaluate", model)
        )
    facts = card_facts(model, shared, folder, repository, license_id)
    text = model_card(facts, results)
    write_atomically(folder / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return facts.name


def current_results(model: Path) -> list[Result]:
    """Return the results that a run folder stores, without those of older weights."""
    found = [load_result(path) for path in sorted((model / EVALUATIONS).glob("*.json"))] if is_run(model) else []
    return [result for result in found if not is_stale(result, model)]


def card_facts(model: Path, shared: SharedModel, folder: Path, repository: str, license_id: str | None) -> CardFacts:
    """Return what the model card states, from the files that are shared and the events of the run."""
    events = read_events(model) if is_run(model) else []
    start, end = first_event(events, "start"), last_event(events, "end")
    config = shared.config or RunConfig(name=model.name, trainable="none", **NO_METHOD)
    trains, data = config.is_trainable, config.data
    parts = [name for name, part in config.method.items() if name not in PARTS or PARTS[name].is_active(part)]
    return CardFacts(
        repository=repository,
        version=__version__,
        name=config.name,
        form=shared.form,
        backbone=shared.backbone_name,
        backbone_sha256=shared.backbone_sha256,
        backbone_is_public=is_public(shared.backbone_name),
        knows_few_words=shared.knows_few_words,
        image_size=f"{shared.image_size[0]} x {shared.image_size[1]}" if shared.image_size else "",
        method=parts or (["CLIP, fine-tuned"] if trains else []),
        losses=config.loss.weights if trains else {},
        datasets=[str(source.dataset) for source in sources_of(data)] if trains else [],
        selected_on=data.select_on if trains else "",
        seed=config.seed if trains else None,
        epoch=shared.best_epoch,
        num_people=start.get("train_identities"),
        num_pairs=start.get("train_pairs"),
        trainable_parameters=start.get("trainable_parameters"),
        total_parameters=start.get("total_parameters"),
        training_seconds=end.get("seconds"),
        needed_plugins=[_named(plugin) for plugin in config.plugins if _has_part(plugin)],
        training_plugins=[_named(plugin) for plugin in config.plugins if not _has_part(plugin)],
        files=[(path.name, path.stat().st_size, sha256_of(path)) for path in sorted(folder.iterdir())],
        license=license_id,
        note=shared.note,
    )


def _has_part(plugin: Requirement) -> bool:
    return any(entry.startswith("parts.") for entry in plugin.provides)


def _named(plugin: Requirement) -> str:
    return f"{plugin.name} (SHA-256 {plugin.sha256})" if plugin.sha256 else plugin.name
