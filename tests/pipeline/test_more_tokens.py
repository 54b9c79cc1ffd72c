"""A finished search that is given more tokens goes on as if it had had them at the start."""

import pytest
import yaml
from run_files import EVOPRESS, small_run

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import RunError
from evocompress.pipeline.journal_memory import Memory


class Count:
    """Counts what a search really evaluates."""

    def __init__(self):
        self.evaluated = 0

    def __call__(self, progress):
        self.evaluated += progress.done == progress.total > 0 and progress.total


EIGHT = EVOPRESS | {"generations": 8}
SEARCHES = {
    "ends by tokens": {},
    "plans with its tokens": {"name": "auto"},
}


@pytest.mark.parametrize("changes", SEARCHES.values(), ids=SEARCHES)
def test_more_tokens_end_as_if_they_had_been_there_from_the_start(made, tmp_path, changes):
    def search(name, tokens, **options):
        run = small_run(made, name=name, runs=str(tmp_path))
        run["library"] = {"path": str(made / "runs" / "trial" / "library")}
        run["search"] = (changes or EIGHT) | {"tokens": tokens}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        count = Count()
        return api.search(load_config(tmp_path / "run.yaml"), listener=count, **options), count

    whole, evaluated = search("whole", 6000)
    run, first = search("more", 3000)
    with pytest.raises(RunError, match="begun with search.tokens=3000, and can go on with more"):
        search("more", 2000, resume=True)
    search("more", 6000, resume=True)
    for name in ("winner.json", "front.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert Memory(run / "journal.jsonl").steps == Memory(whole / "journal.jsonl").steps
    assert Memory(whole / "journal.jsonl").steps[-1].requested > 3000
    again = search("more", 6000, resume=True)[1]
    assert again.evaluated == 0
    assert first.evaluated > 0 and evaluated.evaluated > 0


def test_known_values_are_not_made_again_with_more_tokens(home):
    changes = ["search.tokens=6000"]
    whole, more = Count(), Count()
    fresh = [*changes, "name=fresh", f"library.path={home / 'runs' / 'trial' / 'library'}"]
    api.search(load_config(home / "trial.yaml", fresh), listener=whole)
    api.search(load_config(home / "trial.yaml", changes), resume=True, listener=more)
    assert 0 < more.evaluated < whole.evaluated


def test_a_kill_while_tokens_are_added_loses_nothing(home):
    run = home / "runs" / "trial"
    before, winner = (run / "journal.jsonl").read_bytes(), (run / "winner.json").read_bytes()
    (run / "journal.jsonl").rename(run / "journal.before-001.jsonl")
    count = Count()
    api.search(load_config(home / "trial.yaml"), resume=True, listener=count)
    assert count.evaluated == 0
    # Within a step known values come in the order asked, others as they are computed.
    assert sorted((run / "journal.jsonl").read_bytes().splitlines()) == sorted(before.splitlines())
    assert (run / "winner.json").read_bytes() == winner
