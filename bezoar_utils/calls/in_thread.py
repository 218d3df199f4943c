"""A coroutine that runs to its end beside a loop that already runs, as in a Jupyter kernel."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor


def run_in_thread(calls) -> None:
    """Run a coroutine in its own thread, because a Jupyter kernel already has a running loop here. An interrupt ends it."""
    cancel = []

    async def cancellable() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await calls

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, cancellable())
        try:
            running.result()
        except BaseException:
            with contextlib.suppress(IndexError, RuntimeError):  # not started yet, or already over
                cancel[0]()
            raise
