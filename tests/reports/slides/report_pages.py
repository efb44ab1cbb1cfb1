"""Calls of the job `mil_report`, and what its pages say."""

import csv
import html.parser

from configs import mil_report
from data_prep.files import schema
from wsiseq_jax.reports.slides import job
from wsiseq_jax.reports.slides.settings import Settings

# Of four slides, one without tissue, and one whose file is gone.
FAILED, MISSING = "syn_03", "syn_01"
SIZE = (512, 384)


class Page(html.parser.HTMLParser):
  """Text, links, pictures and open elements of a page."""

  def __init__(self, path):
    super().__init__()
    self.path, self.text, self.links, self.images = path, "", [], []
    self.ids, self.open, self.tags = set(), [], []
    self.feed(path.read_text(encoding="utf-8"))
    self.text = " ".join(self.text.split())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    if tag == "a":
      self.links.append(attrs.get("href") or attrs["xlink:href"])
    if tag == "img":
      assert attrs["alt"] and int(attrs["width"]) and int(attrs["height"])
      assert attrs["loading"] == "lazy"
      self.images.append(attrs["src"])
    if "id" in attrs:
      self.ids.add(attrs["id"])
    if tag not in ("img", "meta", "br"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not {"style", "script"} & set(self.open):
      self.text += data


def rows_of(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def configured(workdir, slides="", **report):
  config = mil_report.get_config()
  config.workdir, config.data.slides = str(workdir), str(slides)
  config.report.update(
    {
      "longest_px": 160, "card_px": 48, "tiles": 2, "tile_px": 24,
      "resamples": 20, "bins": 4, "tiles_apart_um": 60.0, **report,
    }
  )  # fmt: skip
  return config


def slide_folder(written, name):
  return written.page.parent / "slides" / name


def write_report(config):
  return job.write_report(schema.build(Settings, config))
