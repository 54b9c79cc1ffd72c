"""A search that is stopped in the middle."""

import pytest

from evocompress import api
from evocompress.evaluation.executor import LocalExecutor
from evocompress.pipeline.context import Local


class Killed(BaseException):
    """What stops a search in the middle."""


def dying(after):
    """The local executor, which stops for good once it has given some answers."""

    class Dying(LocalExecutor):
        left = after

        def map(self, requests):
            for answer in super().map(requests):
                if not Dying.left:
                    raise Killed
                Dying.left -= 1
                yield answer

    return lambda local, context, live, admit: Dying(context.proxy(live), context.estimates(live))


def resumed(config, after, monkeypatch):
    """The folder of a search that was stopped after some answers, and then went on."""
    with monkeypatch.context() as patch:
        patch.setattr(Local, "executor", dying(after))
        with pytest.raises(Killed):
            api.search(config)
    return api.search(config, resume=True)
