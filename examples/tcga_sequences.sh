#!/usr/bin/env bash
# Pretraining on diagnostic slides of TCGA, from the downloaded files to a page.
#
#   examples/tcga_sequences.sh SLIDES OUT
#
# SLIDES is the folder of the download (one folder a file, or all in one). The
# patient of a slide is the first twelve characters of its name, as in
# TCGA-A1-A0SB-01Z-00-DX1; splits are by patient. OUT gets table.csv, shards,
# checkpoints, evaluation.json, embeddings and report/index.html. Repeat the
# command after an interruption.
#
# PREP, MODEL and EXTRA choose other presets and settings, for example
#   MODEL=configs/videomae.py:small EXTRA="--config.data.batch_size=64"
# On several machines see docs/launch.md and docs/cluster.md.
set -euo pipefail
slides=${1:?usage: examples/tcga_sequences.sh SLIDES OUT} out=${2:?no OUT}
prep=${PREP:-configs/prep_wsi.py} model=${MODEL:-configs/videomae.py:base}
python=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$out"

"$python" - "$slides" "$out/table.csv" <<'PY'
import csv, pathlib, sys
folder, table = sys.argv[1:]
kinds = {".svs", ".tif", ".tiff", ".ndpi", ".mrxs"}
files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix in kinds)
with open(table, "w", newline="") as file:
  rows = csv.writer(file)
  rows.writerow(["slide_id", "filename", "patient_id"])
  for path in files:
    # TCGA-A1-A0SB-01Z-00-DX1.<uuid>.svs: the slide, and its patient.
    slide = path.name.split(".")[0]
    rows.writerow([slide, path.resolve(), slide[:12]])
print(f"{len(files)} slides -> {table}")
PY

# Exit code 3: finished, some slides were refused; errors.csv lists them.
"$python" -m data_prep --config="$prep" --config.slides="$out/table.csv" \
  --config.out="$out/data" || [ $? -eq 3 ]

run() {
  "$python" main.py --config="$model" --config.data.path="$out/data/shards" \
    --config.workdir="$out/run" ${EXTRA:-} "$@"
}
run
run --config.job=evaluate
run --config.job=embed
run --config.job=report --config.report.prep="$out/data" \
  --config.report.out="$out/report"
