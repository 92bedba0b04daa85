"""The pages of the documentation and their blocks of code, for the tests that check them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GENERATED = "docs/reference/browser/"
"""TypeDoc writes these pages when the website is built."""


@dataclass(frozen=True)
class Block:
    """A block of code: the page and the heading above it, its language (empty where it has none) and its text."""

    page: str
    section: str
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page}#{self.section}"


@cache
def pages() -> dict[str, str]:
    """The text of each page by its path in the repository. The README and the tutorial come first, since the others
    assume them."""
    first = [REPOSITORY / "README.md", REPOSITORY / "docs" / "tutorial" / "first-platform.md"]
    rest = sorted({*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")} - set(first))
    found = {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in [*first, *rest]}
    return {page: text for page, text in found.items() if not page.startswith(GENERATED)}


def blocks(language: str | None = None) -> list[Block]:
    """All blocks of code, or those of one language, in the order of the pages."""
    found = [block for page, text in pages().items() for block in blocks_of(page, text)]
    return [block for block in found if language in (None, block.language)]


def blocks_of(page: str, text: str) -> list[Block]:
    """The blocks of one page; a ``#`` inside a block is no heading."""
    found, section = [], ""
    parts = re.finditer(r"^```(\w*)\n(.*?)^```$|^#+ ([^\n]+)$", text, re.DOTALL | re.MULTILINE)
    for part in parts:
        if part[3] is not None:
            section = part[3]
        else:
            found.append(Block(page, section, part[1], part[2]))
    return found


def block(page: str, section: str, language: str, number: int = 0) -> str:
    """The text of a block of a section; ``number`` tells several of one language apart."""
    of_section = [found for found in blocks(language) if (found.page, found.section) == (page, section)]
    return of_section[number].text


@dataclass(frozen=True)
class Elsewhere:
    """Why `tests/platform/test_checkout.py` does not run the commands of a section: another test runs them (a pytest
    node id), or no test can (a reason). It lists all commands, so that a test notices a new one in the section."""

    commands: set[str]
    test: str = ""
    reason: str = ""


NATS_GUIDE = "tests/platform/test_nats_command.py::test_the_commands_of_the_how_to_guide_run"
BACKUP_GUIDE = "tests/platform/test_backup.py::test_everything_is_lost_and_comes_back"
DOCUMENTS = "tests/platform/test_documents.py::test_the_commands_of_the_how_to_guide_run"
HOSTS = "needs hosts of the reader's own"
ELSEWHERE = {
    "CONTRIBUTING.md#Check your change": Elsewhere({"make check", "make test"}, reason="this is what runs the tests"),
    "docs/how-to/acme.md#Deploy for ACME": Elsewhere(
        {"natskit deploy"}, test="tests/cluster/test_changes.py::test_a_renewed_certificate_is_served_without_a_restart"
    ),
    "docs/how-to/acme.md#Install the hook": Elsewhere(
        {"install"}, test="tests/render/test_docs.py::test_the_hook_gives_nginx_a_renewed_certificate"
    ),
    "docs/how-to/acme.md#Use certbot": Elsewhere({"apt-get", "certbot"}, reason="needs a public name"),
    "docs/how-to/acme.md#Use lego": Elsewhere({"apt-get", "cat", "lego", "systemctl"}, reason="needs a public name"),
    "docs/how-to/back-up.md#Take a backup": Elsewhere(
        {"export", "natskit backup create", "natskit backup list"}, test=BACKUP_GUIDE
    ),
    "docs/how-to/back-up.md#Verify a backup": Elsewhere({"natskit backup verify"}, test=BACKUP_GUIDE),
    "docs/how-to/back-up.md#Take backups regularly": Elsewhere(
        {"natskit schedule backup"},
        test="tests/unit/test_schedule.py::test_backups_every_day_and_a_verification_every_week",
    ),
    "docs/how-to/back-up.md#Keep the newest backups": Elsewhere(
        {"natskit backup prune"}, test="tests/platform/test_backup.py::test_a_file_that_is_being_written_is_named"
    ),
    "docs/how-to/back-up.md#Restore everything": Elsewhere({"natskit backup restore"}, test=BACKUP_GUIDE),
    "docs/how-to/back-up.md#Go back to a backup": Elsewhere(
        {"natskit backup restore"}, test="tests/platform/test_backup.py::test_back_to_a_backup_and_one_bucket"
    ),
    "docs/how-to/back-up.md#Get a file of a project back": Elsewhere(
        {"natskit backup files", "natskit cp"},
        test="tests/platform/test_backup.py::test_a_file_of_a_project_comes_back",
    ),
    "docs/how-to/back-up.md#Keep backups on another host or in S3": Elsewhere(
        {"natskit backup create"},
        test="tests/hub/test_backup_targets.py::test_a_backup_is_taken_verified_and_restored",
    ),
    "docs/how-to/back-up.md#Restore the files of one project": Elsewhere(
        {"natskit project stop", "natskit backup restore"},
        test="tests/platform/test_backup.py::test_a_file_of_a_project_comes_back",
    ),
    "docs/how-to/back-up.md#Restore one bucket": Elsewhere(
        {"natskit backup restore"}, test="tests/platform/test_backup.py::test_back_to_a_backup_and_one_bucket"
    ),
    "docs/how-to/change-a-setting.md#On hosts of your own": Elsewhere(
        {"natskit deploy"},
        test="tests/cluster/test_ssh.py::test_a_changed_setting_reaches_the_hosts_and_nothing_is_left_in_tmp",
    ),
    "docs/how-to/copy-files.md#Copy with the command": Elsewhere(
        {"natskit cp"}, test="tests/platform/test_files.py::test_the_commands_of_the_how_to_guide_run"
    ),
    "docs/how-to/copy-files.md#Keep two folders alike": Elsewhere(
        {"natskit sync"},
        test="tests/platform/test_files.py::test_sync_makes_folders_alike_and_copies_nothing_twice",
    ),
    "docs/how-to/copy-files.md#Use curl": Elsewhere(
        {"curl", "echo", "set"},
        test="tests/platform/test_files_over_http.py::test_the_commands_of_the_how_to_guide_run",
    ),
    "docs/how-to/copy-files.md#Go on with an upload that broke off": Elsewhere(
        {"curl", "sed"}, test="tests/platform/test_files_over_http.py::test_the_commands_of_the_how_to_guide_run"
    ),
    "docs/how-to/deploy-to-hosts.md#Prepare the hosts": Elsewhere(
        {"apt-get", "echo", "install", "useradd"}, test="tests/cluster/test_ssh.py::ssh"
    ),
    "docs/how-to/deploy-to-hosts.md#Prepare the control machine": Elsewhere({"apt-get", "ssh"}, reason=HOSTS),
    "docs/how-to/deploy-to-hosts.md#Deploy": Elsewhere(
        {"natskit deploy"}, test="tests/cluster/test_wheel.py::test_init_and_deploy_from_an_empty_folder"
    ),
    "docs/how-to/deploy-to-hosts.md#Deploy without a checkout": Elsewhere(
        {"apt-get", "cd", "mkdir", "natskit deploy", "natskit init", "pipx"},
        test="tests/cluster/test_wheel.py::test_init_and_deploy_from_an_empty_folder",
    ),
    "docs/how-to/deploy-to-hosts.md#Look at the platform": Elsewhere({"natskit status", "ssh"}, reason=HOSTS),
    "docs/how-to/doctor.md#Find out what is wrong": Elsewhere(
        {"natskit doctor"}, test="tests/platform/test_doctor.py::test_nothing_is_wrong_with_a_new_platform"
    ),
    "docs/how-to/doctor.md#Ask for help": Elsewhere(
        {"natskit doctor"}, test="tests/platform/test_doctor.py::test_a_bundle_holds_no_secret"
    ),
    "docs/how-to/edit-together.md#Use the command": Elsewhere(
        {"echo", "natskit document cat", "natskit document edit", "natskit document list"}, test=DOCUMENTS
    ),
    "docs/how-to/edit-together.md#Look at the history": Elsewhere(
        {"natskit document history", "natskit document restore", "natskit document show"}, test=DOCUMENTS
    ),
    "docs/how-to/edit-together.md#Thin out old history": Elsewhere({"natskit document retention"}, test=DOCUMENTS),
    "docs/how-to/edit-together.md#Remove a document for good": Elsewhere({"natskit document delete"}, test=DOCUMENTS),
    "docs/how-to/jetstream.md#Encrypt streams at rest": Elsewhere(
        {"openssl"}, test="tests/unit/test_docs_commands.py::test_the_key_that_openssl_makes_is_one_for_jetstream"
    ),
    "docs/how-to/jetstream.md#Change the key on a cluster": Elsewhere(
        {"natskit deploy", "natskit status", "ssh"}, reason="was measured by hand; takes the streams of a host away"
    ),
    "docs/how-to/manage-hosts.md#Replace two of three nats-servers": Elsewhere(
        {"natskit deploy", "natskit account list", "natskit status", "ssh"}, reason=HOSTS
    ),
    "docs/how-to/manage-hosts.md#Remove a host": Elsewhere({"ssh"}, reason=HOSTS),
    "docs/how-to/manage-hosts.md#Move a project to another runner": Elsewhere(
        {"natskit project move"}, test="tests/cluster/test_moves.py::test_a_project_moves_between_two_hosts"
    ),
    "docs/how-to/manage-hosts.md#When the old host is lost": Elsewhere(
        {"natskit project move"}, test="tests/cluster/test_moves.py::test_a_project_moves_between_two_hosts"
    ),
    "docs/how-to/monitor.md#Show metrics": Elsewhere(
        {"base64", "curl", "head", "umask"}, test="tests/platform/test_metrics.py::test_a_scraper_reads_everything"
    ),
    "docs/how-to/monitor.md#Run the canary": Elsewhere(
        {"natskit account add", "natskit canary", "natskit schedule canary"},
        test="tests/platform/test_metrics.py::test_the_canary_does_what_a_user_does_and_says_which_step_fails",
    ),
    "docs/how-to/monitor.md#Let natskit install Prometheus": Elsewhere({"ssh"}, reason=HOSTS),
    "docs/how-to/monitor.md#Use a Prometheus of your own": Elsewhere(
        {"natskit render"}, test="tests/render/test_alerts.py::test_prometheus_takes_its_configuration"
    ),
    "docs/how-to/nats-and-nsc.md#Get the creds files": Elsewhere({"natskit identity export"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Connect with nats": Elsewhere({"nats"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Look at the hubs": Elsewhere({"nats"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Look at the nats-servers": Elsewhere({"nats"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Connect over WebSocket": Elsewhere({"nats"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Describe the identity with nsc": Elsewhere({"alias", "nsc-bus"}, test=NATS_GUIDE),
    "docs/how-to/nats-and-nsc.md#Bring an identity back from nsc": Elsewhere(
        {"natskit identity import", "nsc"}, test=NATS_GUIDE
    ),
    "docs/how-to/own-ca.md#Put your CA in place": Elsewhere(
        {"cp", "install"}, test="tests/nats/test_own_ca.py::test_nats_server_and_its_clients_know_each_other_by_it"
    ),
    "docs/how-to/protect-keys.md#Encrypt the keys": Elsewhere(
        {"natskit identity encrypt"},
        test="tests/unit/test_vault.py::test_the_passphrase_is_asked_for_on_the_terminal",
    ),
    "docs/how-to/protect-keys.md#Give the passphrase": Elsewhere(
        {"natskit identity unlocked"}, test="tests/unit/test_vault.py::test_a_child_may_be_handed_the_passphrase"
    ),
    "docs/how-to/protect-keys.md#Back up the keys": Elsewhere(
        {"natskit identity backup", "natskit identity restore"},
        test="tests/unit/test_identity_backup.py::test_a_backup_of_a_plain_identity_is_encrypted_and_restores_it",
    ),
    "docs/how-to/protect-keys.md#Exchange keys with nsc": Elsewhere(
        {"natskit identity export"},
        test="tests/unit/test_identity_backup.py::test_what_is_exported_is_nscs_format_and_imports_as_the_same_identity",
    ),
    "docs/how-to/read-the-audit.md#Keep a copy": Elsewhere(
        {"natskit audit", "logger"},
        test="tests/platform/test_command.py::test_the_audit_is_copied_to_the_system_log_as_the_guide_shows_it",
    ),
    "docs/how-to/release.md#Check the code": Elsewhere(
        {"make lint", "make docs", "make test"}, reason="this is what runs the tests"
    ),
    "docs/how-to/release.md#Renew the pins": Elsewhere({"make lock", "make test"}, reason="changes what is pinned"),
    "docs/how-to/release.md#Build the packages": Elsewhere(
        {"make wheel", ".", "cd", "npm"},
        test="tests/platform/test_checkout.py::test_the_packages_of_a_release_are_built_as_the_guide_says",
    ),
    "docs/how-to/render.md#The platform in one file": Elsewhere(
        {"natskit render"}, test="tests/render/test_docs.py::test_the_platform_in_one_file"
    ),
    "docs/how-to/render.md#Use a shell script": Elsewhere({"natskit render", "scp", "ssh"}, reason=HOSTS),
    "docs/how-to/render.md#Use Helm": Elsewhere({"helm", "kubectl", "natskit render"}, reason="needs Kubernetes"),
    "docs/how-to/respond-to-a-compromise.md#After a stolen session": Elsewhere(
        {"natskit project rotate-keys"}, test="tests/platform/test_rights.py::test_keys_of_projects_are_rotated"
    ),
    "docs/how-to/rotate-keys.md#Rotate keys": Elsewhere(
        {"natskit identity rotate"}, test="tests/platform/test_rotation.py::test_a_rotation"
    ),
    "docs/how-to/rotate-keys.md#Rotate one project's key": Elsewhere(
        {"natskit project rotate-keys"}, test="tests/platform/test_rights.py::test_keys_of_projects_are_rotated"
    ),
    "docs/how-to/rotate-keys.md#Delete a NATS account": Elsewhere(
        {"natskit identity delete-account"},
        test="tests/nats/test_account_resolver.py::test_another_nats_account_is_deleted_everywhere_and_only_when_nobody_uses_it",
    ),
    "docs/how-to/use-terminals.md#Open a terminal": Elsewhere(
        {"natskit terminal"}, test="tests/platform/test_terminal_command.py::test_a_terminal_in_this_one"
    ),
    "docs/how-to/use-terminals.md#Record a terminal": Elsewhere(
        {"natskit terminal"}, test="tests/platform/test_terminal_command.py::test_a_terminal_is_recorded"
    ),
    "docs/how-to/use-terminals.md#Start a job": Elsewhere(
        {"natskit exec", "natskit job attach", "natskit job end", "natskit job forget", "natskit job list"},
        test="tests/platform/test_terminal_command.py::test_a_job_goes_on_without_its_reader",
    ),
    "docs/how-to/upgrade.md#Upgrade nats-server": Elsewhere(
        {"make upgrade-cluster", "natskit deploy"}, test="tests/cluster/test_upgrade.py::test_nobody_notices"
    ),
    "docs/how-to/upgrade.md#Upgrade natskit": Elsewhere(
        {"git", "make console"},
        test="tests/platform/test_checkout.py::test_an_upgrade_fetches_the_commits_and_rebuilds_the_console",
    ),
    "docs/tutorial/shared-document.md#Put it on the platform": Elsewhere(
        {"esbuild", "make up"},
        test="tests/platform/test_shared_documents.py::test_the_page_of_the_tutorial",
    ),
}
