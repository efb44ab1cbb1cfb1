"""Sections of the report about what the model holds to be alike.

Clusters on the slides, their members, nearest neighbours. `report.py` puts them
on a page.
"""

from collections import Counter

import numpy as np

from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.sequences.material import Report, left_out
from wsiseq_jax.search import clustering
from wsiseq_jax.search import neighbours as retrieval


def maps(report: Report) -> str:
  """Cluster maps over the slides, with their legend."""
  cards = []
  present = [
    s for s in report.prep.slides if (report.slide == s.slide_id).any()
  ]
  for slide in present[: report.settings.max_slides]:
    mine = report.slide == slide.slide_id
    thumbnail, downsample = slide.thumbnail(720)
    picture = figures.cluster_picture(
      thumbnail, downsample, report.xy[mine], report.clusters.assignment[mine]
    )
    picture = figures.scale_bar(picture, slide.info["mpp"] * downsample)
    common = Counter(report.clusters.assignment[mine].tolist()).most_common(3)
    most = ", ".join(f"{k} ({n / mine.sum():.0%})" for k, n in common)
    cards.append(
      page.figure(
        page.image(picture, f"cluster map of slide {slide.slide_id}"),
        f"<strong>{escape(slide.slide_id)}</strong> · {mine.sum()} sequences "
        f"· most frequent clusters: {most}",
      )
    )
  legend = "".join(
    f"<li>{page.swatch(n)}{n} ({size})</li>"
    for n, size in enumerate(report.clusters.sizes.tolist())
  )
  note = left_out(len(present), report.settings.max_slides)
  return (
    "<p>Each line is one sequence: the path of its frame centres over the "
    "slide, with a dot where it starts, in the colour of its cluster. The "
    "legend gives the number of the cluster and its sequences.</p>"
    f'<ul class="legend">{legend}</ul>'
    '<p class="limit">Clusters are found without labels and mean nothing by '
    "themselves; they can follow stain, thickness, or focus as well as "
    f"tissue. Some colours are hard to tell apart: the number counts. {note}"
    f'</p><div class="slides">{"".join(cards)}</div>'
  )


def montages(report: Report) -> str:
  """The members nearest the centre of each cluster."""
  settings, clusters = report.settings, report.clusters
  groups = report.region if settings.one_per_region else None
  members = clustering.nearest_members(clusters, settings.members, groups)
  by_slide = clustering.mutual_information(clusters.assignment, report.slide)
  once = "at most one per region" if groups is not None else "any region"
  less = ""
  if report.count < settings.clusters:
    less = (
      f" {settings.clusters} clusters were asked for, but there are only "
      f"{report.count} sequences."
    )
  parts = [
    f"<p>k-means with {report.count} clusters (seed {settings.seed}) on "
    f"features of length 1.{less} Open a cluster to see the up to "
    f"{settings.members} members nearest its centre, nearest first, {once}. "
    f"{escape(report.frame_text())}</p>"
    '<p class="limit">The members nearest the centre are the most typical '
    "ones and look more alike than the cluster as a whole. Agreement of "
    f"clusters with {report.whole}{'' if report.is_series else 's'}: "
    f"{by_slide:.2f} (normalised mutual information; 0 = clusters ignore the "
    f"{report.whole}, 1 = each {report.whole} has its own clusters). A high "
    "value means that stain or scanner, not what is shown, may have been "
    "learned.</p>"
  ]
  for number, rows in enumerate(members):
    mine = clusters.assignment == number
    slides = Counter(report.slide[mine].tolist())
    top = ", ".join(f"{name} {n}" for name, n in slides.most_common(3))
    rest = len(slides) - 3
    plural = "s" * (rest > 1 and not report.is_series)
    more = f" and {rest} more {report.whole}{plural}" if rest > 0 else ""
    middle = [report.frames(int(r)) for r in rows[:6]]
    preview = np.stack([clip[len(clip) // 2] for clip in middle])
    lines = [
      report.line(int(r), f"{place}. distance {clusters.distance[r]:.3g}")
      for place, r in enumerate(rows, 1)
    ]
    parts.append(
      f"<details{' open' if number < 2 else ''}><summary>"
      f"{page.swatch(number)}<strong>Cluster {number}</strong> · "
      f"{mine.sum()} sequences · {escape(top)}{more}"
      '<span class="preview">'
      f"{page.image(figures.strip(preview, 64), f'cluster {number}')}</span>"
      f"</summary>{page.scroll(''.join(lines), 900)}</details>"
    )
  return "".join(parts)


def neighbours(report: Report) -> str:
  """Nearest neighbours of a few sequences."""
  settings = report.settings
  rows = np.array(report.spread(settings.queries))
  found = retrieval.nearest(
    report.features[rows],
    report.features,
    settings.neighbours,
    report.region[rows],
    report.region,
  )
  many = report.rng.permutation(len(report.features))[:2000]
  first = retrieval.nearest(
    report.features[many],
    report.features,
    1,
    report.region[many],
    report.region,
  )
  same = retrieval.share_same(first, report.slide[many], report.slide)
  share = np.array(list(Counter(report.slide.tolist()).values()))
  chance = float(((share / share.sum()) ** 2).sum())
  parts = [
    f"<p>For {len(rows)} sequences drawn at random (seed {settings.seed}): "
    f"the {settings.neighbours} most similar sequences of all "
    f"{len(report.features)}, by cosine distance (0 = same direction)."
  ]
  if not report.is_series:
    parts.append(
      " Sequences of the query's own region are left out.</p>"
      '<p class="limit">Neighbouring regions of one slide may overlap and '
      f"count as finds. Over {len(many)} queries, {same:.0%} of the nearest "
      f"neighbours come from the query's own slide; by chance it would be "
      f"about {chance:.0%}. Part of that is tissue, part is stain."
    )
  parts.append("</p>")
  for row, hits, distances in zip(
    rows, found.index, found.distance, strict=True
  ):
    lines = [report.line(int(row), "query")]
    for place, (hit, distance) in enumerate(
      zip(hits.tolist(), distances.tolist(), strict=True), 1
    ):
      if hit < 0:
        continue
      kin = ""
      if report.slide[hit] == report.slide[row]:
        kin = f" · same {report.whole}"
      elif report.patient[hit] == report.patient[row]:
        kin = " · same patient"
      lines.append(report.line(hit, f"{place}. distance {distance:.3g}{kin}"))
    parts.append(f"<h3>{escape(report.names[row])}</h3>")
    parts.append(page.scroll("".join(lines), 900))
  return "".join(parts)
