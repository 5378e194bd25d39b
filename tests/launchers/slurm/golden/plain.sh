#!/bin/bash

# Parameters
#SBATCH --chdir=/home/user
#SBATCH --job-name=ketos-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/data/run/launch/slurm-%j.log
#SBATCH --requeue
#SBATCH --signal=USR2@120

# command
export SUBMITIT_EXECUTOR=slurm
exec env PYTHONSAFEPATH=1 /opt/ketos/bin/python -u -m launchers.slurm /data/run
