#!/bin/bash

# Parameters
#SBATCH --array=0-2%2
#SBATCH --chdir=/home/user
#SBATCH --job-name=ketos-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/data/sweep/slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --signal=USR2@120

# command
export SUBMITIT_EXECUTOR=slurm
exec env PYTHONSAFEPATH=1 /opt/ketos/bin/python -u -m launchers.slurm --sweep /data/sweep "$SLURM_ARRAY_TASK_ID"
