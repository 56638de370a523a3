"""What CPU ranks import, for the server that they are forked from, which alone imports this module.

Nothing here may start a thread: a fork takes one along.
"""

from __future__ import annotations

from contextlib import suppress

from tinyllama.launch import forkserver

forkserver.serve()

with suppress(Exception):  # each rank tries again, and says what is wrong
    import tinyllama.data.loader
    import tinyllama.data.tokenizer
    import tinyllama.data.verify
    import tinyllama.engine.saving
    import tinyllama.engine.start
    import tinyllama.evaluate.exam
    import tinyllama.evaluate.loss
    import tinyllama.models
    import tinyllama.tasks
    import tinyllama.tracking.mlflow
    import tinyllama.tracking.tracker
    import tinyllama.train.loop
    import tinyllama.train.outcome  # noqa: F401
    from tinyllama.engine import zero

    zero.import_deepspeed("cpu")
