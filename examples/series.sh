#!/usr/bin/env bash
# A data set of series: every contrastive method, MAE, and what each one knows.
#
#   examples/series.sh SERIES.csv OUT
#
# SERIES.csv lists images or videos (layouts: configs/prep_series.py) with their
# patients, times and targets. OUT gets shards, a run and a probe for each
# method, and methods.csv: one row for each method, target and probe.
set -euo pipefail
usage="usage: examples/series.sh SERIES.csv OUT"
series=${1:?$usage} out=${2:?$usage}
size=${SIZE:-} prep=${PREP:-configs/prep_series.py} python=${PYTHON:-python}
methods=${METHODS:-tvrl cvrl ltn csimclr csimclr_te clm mae}
probe=${PROBE:-configs/probe.py}
cd "$(dirname "$0")/.."
mkdir -p "$out"

"$python" -m data_prep --config="$prep" --config.csv="$series" \
  --config.out="$out/data" || [ $? -eq 3 ]
for method in $methods; do
  config=configs/contrastive.py:$method$size
  [ "$method" = mae ] && config=configs/videomae.py:series$size
  "$python" main.py --config="$config" --config.workdir="$out/$method" \
    --config.data.path="$out/data/shards" ${EXTRA:-}
  "$python" main.py --config="$probe" --config.workdir="$out/$method/probe" \
    --config.checkpoint.path="$out/$method/checkpoints" \
    --config.data.path="$out/data/shards"
done

"$python" - "$out" $methods <<'PY'
import pathlib, sys
import pandas as pd
out, *methods = sys.argv[1:]
tables = [
  pd.read_csv(pathlib.Path(out, method, "probe", "probe.csv")).assign(
    method=method
  )
  for method in methods
]
table = pd.concat(tables)
table.to_csv(pathlib.Path(out, "methods.csv"), index=False)
print(table.to_string(index=False))
PY
