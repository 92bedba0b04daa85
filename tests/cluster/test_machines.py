"""The machines themselves: they run the requested Debian release, as a real host would."""

from __future__ import annotations

import re

from tests.cluster.site import DEBIAN, RUNNERS, Cluster


def test_every_machine_runs_the_release_that_was_asked_for(cluster: Cluster) -> None:
    read = ". /etc/os-release && echo $VERSION_ID"
    assert {machine: cluster.sh(machine, read).stdout.strip() for machine in cluster.machines} == dict.fromkeys(
        cluster.machines, DEBIAN
    )


def test_runners_have_a_disk_whose_ids_can_be_mapped(cluster: Cluster) -> None:
    kinds = {machine: cluster.sh(machine, "stat -f -c %T /var/lib").stdout.strip() for machine in RUNNERS}
    assert not {"overlayfs", "tmpfs"} & set(kinds.values()), kinds


def test_nginx_of_the_release_takes_its_configuration_without_a_warning(cluster: Cluster) -> None:
    checked = cluster.sh("proxy-1", "nginx -t -q -e stderr -c /var/lib/natskit/proxy/nginx.conf 2>&1")
    assert checked.stdout == ""
    logged = cluster.sh("proxy-1", "journalctl --no-pager --output cat --unit nginx").stdout.splitlines()
    # With "*" and a number it is about a connection: other tests have ended what it led to.
    about_itself = [line for line in logged if not re.search(r"\[\w+\] \d+#\d+: \*\d+ ", line)]
    assert not [line for line in about_itself if "[warn]" in line or "[emerg]" in line]
