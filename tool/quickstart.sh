#!/bin/sh
# From nothing to a trained and tested network: installs what is needed, renders the toy dataset, trains PSPNet18 on the CPU,
# tests it, and says where everything is and what works next.
#   sh tool/quickstart.sh [KEY VALUE ...]
set -eu
case "${1:-}" in -h | --help) sed -n 's/^# //p' "$0"; exit ;; esac
here=$PWD
CDPATH= cd "$(dirname "$0")/.."
. tool/environment.sh
make_python requirements.txt
start=$(date +%s)
"$PYTHON" tool/prepare.py toy
run_training --config config/toy/toy_pspnet18.yaml "$@"
"$PYTHON" tool/test.py --config config/toy/toy_pspnet18.yaml "$@"
cat << END

Rendered, trained and tested in $(($(date +%s) - start)) seconds.
  colour predictions  exp/toy/pspnet18/result
  checkpoint          exp/toy/pspnet18/model
These work next:
END
[ "$PWD" = "$here" ] || echo "  cd '$PWD'"
if [ "$PYTHON" = .venv/bin/python ]; then
    echo "  . .venv/bin/activate"
    PYTHON=python
fi
cat << END
  $PYTHON tool/demo.py --config config/toy/toy_pspnet18.yaml --image dataset/toy/image/val --out seen
  $PYTHON -m pip install tensorboard
  tensorboard --logdir exp
END
