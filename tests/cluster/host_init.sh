# PID 1 of a host: its own /run and /dev/shm, its own files in /etc, sshd, and the reaping of orphans.
# Everything else of the machine is the hosts' shared file system. $1: name; $2: folder whose files go over /etc.
set -e
hostname "$1"
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/munge /run/lock
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for file in hosts hostname; do mount --bind "$2/$file" "/etc/$file"; done
for folder in ssh munge slurm; do mount --bind "$2/$folder" "/etc/$folder"; done
# What a login shell of this machine may print or wait for is not the hosts'.
[ ! -f ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
set +e
/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config &
while :; do wait -n 2>/dev/null || sleep 1; done
