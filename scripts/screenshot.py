"""Pictures of what TensorBoard shows of a folder of runs, by a headless Chromium.

    pip install -e '.[screenshot]'; apt-get install chromium chromium-driver    (once)
    python scripts/screenshot.py LOGDIR [FOLDER]

Writes time_series.png, images.png and hparams.png into FOLDER (default: the shell's directory),
each once its page has stopped changing.
"""

import contextlib
import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PAGES = {"time_series": "timeseries", "images": "images", "hparams": "hparams"}
SIZE = (1600, 1000)
SECONDS = 120  # until a page must stand still


@contextlib.contextmanager
def tensorboard(logdir: str) -> Iterator[str]:
    """A TensorBoard of its own; its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--port", str(port)]
    child = subprocess.Popen([*command, "--load_fast=false"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{address}data/runs", timeout=5).read()
                break
            except OSError:
                if child.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield address
    finally:
        child.terminate()
        child.wait()


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium with a fresh profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if program:
        options.binary_location = program
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--enable-unsafe-swiftshader",  # charts are drawn by WebGL
            f"--user-data-dir={profile}",
            f"--window-size={SIZE[0]},{SIZE[1]}",
        ):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            driver.set_window_size(*SIZE)
            yield driver
        finally:
            driver.quit()


def settle(driver) -> bytes:
    """The page as a PNG, once three pictures in a row, a second apart, are the same."""
    deadline, same, last = time.monotonic() + SECONDS, 0, ""
    while True:
        time.sleep(1)
        picture = driver.get_screenshot_as_png()
        now = hashlib.sha256(picture).hexdigest()
        same = same + 1 if now == last else 0
        last = now
        shown = driver.execute_script("return document.body.innerText.length") > 200
        if (same >= 3 and shown) or time.monotonic() > deadline:
            return picture


def main(logdir: str, folder: str = ".") -> None:
    """Write the pictures."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tensorboard(logdir) as address, browser() as driver:
        for name, page in PAGES.items():
            driver.get(f"{address}#{page}")
            driver.refresh()
            path = Path(folder) / f"{name}.png"
            path.write_bytes(settle(driver))
            print(f"wrote {path}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
