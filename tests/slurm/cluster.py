# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A real Slurm of several nodes on this machine, for tests. Its daemons are on loopback, their files in one folder.

The nodes claim more cores than there are, and have no GPUs. Partition `main` comes first: it has the nodes of `low`
given back, whose jobs are warned, ended after a grace, and queued again. Needs root, and Debian's munge, slurmctld and
slurmd.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ('munged', 'mungekey', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'scontrol', 'scancel', 'unshare')
GRACE = 20  # seconds between the warning of a preempted job and its end

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=3,bf_interval=3,batch_sched_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} State=UP
"""


def why_not() -> str | None:
    """The reason why no cluster can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f'no {", ".join(missing)} (Debian, Ubuntu: apt install munge slurm-client slurmctld slurmd)'
    if os.geteuid() != 0:
        return 'the daemons of Slurm need root here'
    isolated = subprocess.run(['unshare', '--uts', '--mount', 'true'], capture_output=True)
    return 'unshare is not permitted here' if isolated.returncode else None


def search_path() -> str:
    return os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin'])


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody uses."""
    for first in range(26817, 60000, 37):
        try:
            for port in range(first, first + count):
                with socket.socket() as listener:
                    listener.bind(('127.0.0.1', port))
            return first
        except OSError:
            continue
    raise OSError('there are no free ports')


class Cluster:
    """Daemons in `folder`, whose path must be short, since there are sockets in it."""

    def __init__(self, folder: Path, nodes: int = 2, cores: int = 4):
        self.folder, self.nodes, self.daemons = Path(folder), [f'node{i + 1}' for i in range(nodes)], []
        host, port = socket.gethostname().split('.')[0], free_ports(nodes + 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / 'state').mkdir(exist_ok=True)
        lines = [CONFIG.format(host=host, port=port, folder=self.folder, grace=GRACE)]
        for i, node in enumerate(self.nodes, 1):
            (self.folder / f'spool-{node}').mkdir(exist_ok=True)
            lines.append(
                f'NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port + i} CPUs={cores} '
                'RealMemory=1000000 State=UNKNOWN\n'
            )
        self.config = self.folder / 'slurm.conf'
        # nodes come before the partitions that have them
        head, partitions = lines[0].split('PartitionName', 1)
        self.config.write_text(head + ''.join(lines[1:]) + 'PartitionName' + partitions)
        names = ''.join(f'127.0.0.1 {node}\n' for node in self.nodes)
        (self.folder / 'hosts').write_text(Path('/etc/hosts').read_text() + '\n' + names)
        self.environment = {**os.environ, 'SLURM_CONF': str(self.config), 'PATH': search_path()}

    def __enter__(self):
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, *command):
        log = (self.folder / f'{len(self.daemons)}.out').open('w')
        self.daemons.append(
            subprocess.Popen(
                list(map(str, command)), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )
        )  # fmt: skip

    def _start_all(self):
        key, socket_ = self.folder / 'munge.key', self.folder / 'munge.sock'
        subprocess.run(['mungekey', '--create', f'--keyfile={key}'], env=self.environment, check=True)
        self._start(
            *('munged', '--foreground', f'--socket={socket_}', f'--key-file={key}', '--num-threads=2'),
            *(f'--pid-file={self.folder}/munged.pid', f'--seed-file={self.folder}/munged.seed'),
            f'--log-file={self.folder}/munged.log',
        )
        self.wait(lambda: socket_.exists(), 20, 'munged')
        self._start('slurmctld', '-D')
        for node in self.nodes:
            # each has its own name, and hosts that know the others
            inside = f'hostname {node} && mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -D -N {node}'
            self._start('unshare', '--uts', '--mount', 'sh', '-c', inside)

        def idle():
            found = self.run('sinfo', '-h', '-N', '-p', 'main', '-t', 'idle', '-o', '%N', check=False).stdout.split()
            return sorted(found) == self.nodes

        self.wait(idle, 60, 'the nodes')

    def wait(self, holds, seconds: float, what: str):
        """Waits until something holds; the logs are in the error where it does not."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                logs = '\n'.join(f'{path}:\n{path.read_text()[-1500:]}' for path in self.folder.glob('*.log'))
                raise TimeoutError(f'{what} did not come within {seconds} s\n{logs}')
            time.sleep(0.1)

    def run(self, *command, check=True, timeout=600, cwd=None, **environment) -> subprocess.CompletedProcess:
        """Runs a command of Slurm, or one that uses Slurm."""
        done = subprocess.run(
            list(map(str, command)), env={**self.environment, **environment}, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, cwd=cwd,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f'{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
            )
        return done

    def state(self, job) -> str:
        shown = self.run('scontrol', 'show', 'job', job, check=False).stdout
        return shown.partition('JobState=')[2].split(' ')[0].split('\n')[0]

    def __exit__(self, *_):
        if len(self.daemons) > 1:
            self.run('scancel', '--user=root', check=False, timeout=20)
            time.sleep(1)  # what was cancelled ends
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        # step daemons that a slurmd left behind, and their tasks: their environment names this cluster
        mark = f'SLURM_CONF={self.config}'.encode()
        for process in Path('/proc').glob('[0-9]*'):
            try:
                if int(process.name) != os.getpid() and mark in (process / 'environ').read_bytes().split(b'\0'):
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ValueError):
                continue
