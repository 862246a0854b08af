"""Helpers of the tests of the page: its elements, and a record of its requests and errors."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, TimeoutError, expect

from cskt.gallery.gallery import Gallery

PATIENCE_MS = 300_000
"""Longest wait for the page, on a busy machine."""
SENTENCE = "a woman in a red dress"
NUM_CROPS = 120
HOSTILE_NAME = "c1/<img src=x onerror=alert(1)>.jpg"
HOSTILE_TRACK = "<b onclick=alert(2)>t'9</b>"
TOKEN = "a token of the tests"


@dataclass
class Watch:
    """Requests and errors of a page."""

    address: str
    elsewhere: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    searches: list[dict[str, object]] = field(default_factory=list)
    """Bodies of POST /api/search."""
    allowed: str = ""
    """Pattern of complaints that a test provokes."""

    def on_request(self, request: Request) -> None:
        """Note a request."""
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.elsewhere.append(request.url)
        if request.url == self.address + "api/search":
            self.searches.append(request.post_data_json)

    def on_console(self, message: ConsoleMessage) -> None:
        """Note a warning or an error."""
        if message.type in ("warning", "error"):
            self.complaints.append(message.text)

    def check(self) -> None:
        """Nothing left the origin, and the console is silent."""
        assert not self.elsewhere
        assert not [text for text in self.complaints if not (self.allowed and re.search(self.allowed, text))]


def hits(page: Page) -> Locator:
    """The crops that are shown."""
    return page.locator("#grid .hit")


def type_sentence(page: Page, text: str = SENTENCE) -> None:
    """Put a sentence into the box and wait for the answer."""
    page.locator("#sentence").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("crop")
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")


def names(page: Page) -> list[str]:
    """Names of the crops that are shown, in order."""
    return [str(hit.get_attribute("data-id")) for hit in hits(page).all()]


def expect_names(page: Page, wanted: list[str]) -> None:
    """Wait until exactly these crops are shown, in this order."""
    shown = "wanted => JSON.stringify([...document.querySelectorAll('.hit')].map((hit) => hit.dataset.id)) === wanted"
    try:
        page.wait_for_function(shown, arg=json.dumps(wanted, separators=(",", ":")), timeout=PATIENCE_MS)
    except TimeoutError:
        assert names(page) == wanted


def asked(page: Page) -> dict[str, str]:
    """The parameters of the page's address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def jpeg(gallery: Gallery, image_id: str) -> bytes:
    """The original of a crop."""
    return gallery.original(image_id).read_bytes()


DROP = """([base64, kind, type]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "crop.jpg", { type }));
  const usual = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", { ...usual, clipboardData: transfer })
    : new DragEvent(kind, { ...usual, dataTransfer: transfer }));
}"""


def hand_over(page: Page, data: bytes, kind: str, media_type: str = "image/jpeg") -> None:
    """Drop or paste a file on the page, as a person would with the mouse or the keyboard."""
    page.evaluate(DROP, [base64.b64encode(data).decode(), kind, media_type])


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const read = (colour) => {
    if (!known.has(colour)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      known.set(colour, [...canvas.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(colour);
  };
  const light = ([red, green, blue]) => [red, green, blue].map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = read(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return read(getComputedStyle(document.documentElement).colorScheme.includes("dark") ? "black" : "white");
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const isSeen = node.checkVisibility({ opacityProperty: true }) && !node.closest("option, script, style");
    if (!text || !isSeen || node.disabled) continue;
    const [one, other] = [light(read(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName} "${node.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
"""Texts whose contrast with what is behind them is below 4.5."""
