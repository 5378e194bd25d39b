# The main job on sample data, as `make demo` runs it: sample, compile, train, kill, resume, test, convert.
# Run from the top of the checkout with `ketos` on the PATH; everything is written below demo/.
set -eu

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ ketos %s\n' "$*"; ketos "$@"; }
# Two processes on this machine, which find each other over the loopback device.
train() { run --config configs/tiny.yml launch local --procs-per-node 2 -- train -f binary -o demo/run demo/pages; }
# SIGKILL to every process that has these words on its command line, agent and workers included.
kill_all() {
    for process in /proc/[0-9]*; do
        if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q -- "$1"; then
            kill -9 "${process#/proc/}" 2>/dev/null || true
        fi
    done
}
export OMP_NUM_THREADS=1

rm -rf demo
mkdir demo

say "1. Sample ground truth: ALTO and PageXML pages to train on, others to test on"
run sample demo/sample --pages 20 --pairs 0
run sample demo/unseen --pages 4 --pairs 0 --seed 7

say "2. Compile the pages into shards of lines ready for a network 32 pixels high, and look at them"
run --workers 2 compile -f xml -o demo/pages --shard-format arrow --shard-size 1M --height 32 \
    demo/sample/alto/*.xml demo/sample/page/*.xml
run inspect demo/pages >demo/inspection.txt
sed '/^alphabet/,$d' demo/inspection.txt

say "3. Train a small network on two processes, and kill all of it without warning once there is a checkpoint"
train &
training=$!
while [ ! -e demo/run/last.ckpt ] && kill -0 $training 2>/dev/null; do sleep 0.2; done
kill_all "train -f binary -o demo/run" && kill_all "$PWD/demo/run" && echo "killed"
wait $training 2>/dev/null || true

say "4. The same command goes on where it was; when only its processes are killed it starts them again by itself"
train &
training=$!
batches() { grep -c first_batch demo/run/events.jsonl; }
while [ "$(batches)" -lt 2 ] && kill -0 $training 2>/dev/null; do sleep 0.2; done
kill_all "distrib --config $PWD/demo/run" && echo "killed"
wait $training
run launch status demo/run

say "   The ledger of the run: was every line trained on exactly once in every epoch?"
run ledger demo/run

say "5. Test the exported model on unseen pages (the head of the report, and the worst lines)"
weights=$(ls demo/run/best_*.safetensors)
run test -m "$weights" -f xml -B 8 --worst 3 demo/unseen/alto/*.xml demo/unseen/page/*.xml >demo/report.txt
sed '/Correct-Generated/,$d' demo/report.txt | tail -n +2
sed -n '/with the most errors/,$p' demo/report.txt

say "6. Convert a checkpoint to weights for kraken and eScriptorium, as safetensors and as CoreML"
run convert -o demo/model.safetensors demo/run/last.ckpt
run convert -o demo/model.mlmodel --weights-format coreml demo/run/last.ckpt

say "Done: $weights"
