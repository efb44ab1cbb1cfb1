#!/usr/bin/env bash
# Camelyon16 with its official split: slide labels in, AUROC and pages out.
#
#   examples/camelyon16.sh SLIDES REFERENCE WEIGHTS OUT
#
# SLIDES holds normal_*.tif, tumor_*.tif and test_*.tif at any depth; REFERENCE
# is the challenge's reference.csv (test_001.tif,Tumor,...); WEIGHTS is a file of
# the encoder (ENCODER, ResNet-50 of torchvision unless given). OUT gets the
# table, features, models, predictions with intervals, and mil/report/index.html.
# Repeat the command after an interruption.
set -euo pipefail
usage="usage: examples/camelyon16.sh SLIDES REFERENCE WEIGHTS OUT"
slides=${1:?$usage} reference=${2:?$usage} weights=${3?$usage} out=${4:?$usage}
encoder=${ENCODER:-configs/embed_tiles.py:resnet50_trunc}
model=${MODEL:-configs/mil.py:gated} python=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$out"

"$python" - "$slides" "$reference" "$out/table.csv" <<'PY'
import csv, pathlib, sys
folder, reference, table = sys.argv[1:]
with open(reference, newline="") as file:
  kinds = {row[0].split(".")[0].lower(): row[1].lower()
           for row in csv.reader(file) if row}
with open(table, "w", newline="") as file:
  rows = csv.writer(file)
  rows.writerow(["slide_id", "filename", "patient_id", "label"])
  for path in sorted(pathlib.Path(folder).rglob("*.tif*")):
    name = path.stem
    kind = kinds.get(name.lower()) or name.split("_")[0]
    if kind in ("normal", "tumor"):
      # Patients are not published: each slide counts as one.
      rows.writerow([name, path.resolve(), name, int(kind == "tumor")])
PY

"$python" main.py --config="$encoder" --config.data.slides="$out/table.csv" \
  --config.encoder.weights="$weights" --config.workdir="$out/tiles" ${TILES:-}
"$python" main.py --config="$model" --config.workdir="$out/mil" \
  --config.data.features="$out/tiles/features" \
  --config.data.table="$out/table.csv" --config.data.label=label \
  --config.data.split_column=camelyon16 ${EXTRA:-}
"$python" main.py --config=configs/mil_report.py --config.workdir="$out/mil" \
  --config.data.slides="$out/table.csv"
