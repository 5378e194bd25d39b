# The main job on sample data, as `make demo` runs it: sample, compile, train, kill, resume, test, convert.
# Everything is written below demo/ in the current folder; `ketos` must be on the PATH.
set -eu

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

rm -rf demo
mkdir demo

say "1. Sample ground truth: line pairs, ALTO and PageXML pages"
run ketos sample demo/sample

say "2. Compile it into a data set"
run ketos --workers 2 compile -f path -o demo/lines.arrow 'demo/sample/lines/*.png'
run ketos --workers 2 compile -f xml -o demo/pages.arrow 'demo/sample/alto/*.xml' 'demo/sample/page/*.xml'

say "3. Train a small network, and kill it without warning after its first checkpoints"
ketos --workers 1 train -f binary -o demo/run -B 4 -q fixed -N 20 -F 2 -r 5e-3 \
    -s '[1,32,0,1 Cr3,3,16 Mp2,2 Cr3,3,32 Mp2,2 Cr3,3,32 Mp2,1 S1(1x0)1,3 Lbx64]' demo/lines.arrow &
training=$!
while [ ! -e demo/run/last.ckpt ] && kill -0 $training 2>/dev/null; do sleep 0.2; done
kill -9 $training && echo "killed"
wait $training 2>/dev/null || true

say "4. Go on where it was: the run directory is all that is needed"
run ketos train --resume demo/run

say "5. Test the exported model"
weights=$(ls demo/run/best_*.safetensors)
run ketos test -m "$weights" -f binary -B 8 --worst 3 demo/lines.arrow

say "6. Convert a checkpoint, as one would for kraken or eScriptorium"
run ketos convert -o demo/model.safetensors demo/run/last.ckpt

say "Done. The model is $weights"
