"""A process of its own for what may end with the process."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(function):
    """Call `function`, which ends by `sys.exit`, in a child, and end as it does; what stops this process stops both.

    A child that crashed is an error in one line and exit status 1. Only on Linux: elsewhere, libraries do not bear a
    fork, and the function is called in this process.
    """
    if sys.platform != "linux":
        return function()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until they reach the child
    child = os.fork()
    if not child:
        _be_child(parent, function)
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        os.kill(child, number)

    for number in _SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # Not reaped before the handlers are gone: its number may be another process' then.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if stopped and code < 0:
        sys.exit(128 + stopped[0])  # as shells put it
    if code < 0:
        print(
            f"Error: the process that read the file ended with {signal.Signals(-code).name}: the file is damaged, "
            "needs more memory than there is, or meets a fault of TensorFlow or LiteRT.",
            file=sys.stderr,
        )
    sys.exit(1 if code < 0 else code)


def _be_child(parent, function):
    os.setpgid(0, 0)  # so that the terminal's Ctrl-C reaches it by the parent alone, once
    # Not to go on alone when the parent is killed (or was already).
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if os.getppid() == parent:
        function()
    os._exit(1)
