#!/bin/sh
# The steps by which the images are built, shared by docker/Dockerfile and docker/ketos.def:
#   sh docker/install.sh torch VARIANT FOLDER          the pinned torch, of the kind that VARIANT (cpu, cuda) says
#   sh docker/install.sh requirements EXTRAS FOLDER    everything else that ketos[EXTRAS] needs, pinned
#   sh docker/install.sh ketos FOLDER                  ketos itself
# They are run from the top of the sources, in this order. FOLDER becomes a virtual environment without pip.
# Which index packages come from is pip's own configuration: PIP_INDEX_URL and the like, or pip.conf.
set -eu

install() {
    python -m pip --python "$folder/bin/python" install --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore -c constraints.txt "$@"
}

fail() {
    echo "Error: $1" >&2
    exit 2
}

torch() {
    case $variant in
        cpu | cuda) ;;
        *) fail "VARIANT=$variant: unknown; give cpu or cuda." ;;
    esac
    python -m venv --without-pip "$folder"
    # Without what it needs: two more gigabytes for CUDA, should it turn out to be of the wrong kind.
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        install --no-deps --index-url "$TORCH_INDEX_URL" torch
    else
        install --no-deps torch
    fi
    cuda=$("$folder/bin/python" -c '
import runpy, sysconfig
print(runpy.run_path(sysconfig.get_path("purelib") + "/torch/version.py")["cuda"] or "")')
    case $variant in
        cpu)
            [ -z "$cuda" ] || fail "VARIANT=cpu, but the torch that was found brings CUDA $cuda; \
name an index of CPU builds with TORCH_INDEX_URL."
            ;;
        cuda)
            [ -n "$cuda" ] || fail "VARIANT=cuda, but the torch that was found is a CPU build; \
leave TORCH_INDEX_URL out, or name an index of CUDA builds."
            ;;
    esac
}

requirements() {
    # The version stands in the package, which is not copied yet when an image is built, so that a change of
    # ours does not download everything anew: what is installed for it here is replaced in the next step.
    install ".[$extras]"
    "$folder/bin/python" -c 'import torch'
}

ketos() {
    install --no-deps --force-reinstall .
    "$folder/bin/ketos" --version
}

step=${1:?usage: install.sh torch|requirements|ketos ...}
shift
case $step in
    torch) variant=$1 folder=$2 ;;
    requirements) extras=$1 folder=$2 ;;
    ketos) folder=$1 ;;
    *) fail "$step: no such step; see the top of docker/install.sh." ;;
esac
"$step"
