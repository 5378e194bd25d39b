#!/bin/bash

# Parameters
#SBATCH --account=scriptorium
#SBATCH --chdir=/home/user
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=8
#SBATCH --exclude='n[3-4]'
#SBATCH --gpus-per-node=4
#SBATCH --job-name='a name'
#SBATCH --mem=102912M
#SBATCH --nodes=2-4
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/data/it'"'"'s 100%%j/launch/slurm-%j.log'
#SBATCH --partition=gpu,long
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation=class
#SBATCH --signal=USR2@300
#SBATCH --time=2160

# setup
#SBATCH --licenses=x
#SBATCH --mail-type=END
module load cuda
source ~/ketos/bin/activate

# command
export SUBMITIT_EXECUTOR=slurm
exec env PYTHONSAFEPATH=1 /opt/ketos/bin/python -u -m launchers.slurm '/data/it'"'"'s 100%j'
