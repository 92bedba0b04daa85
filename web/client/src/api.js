/**
 * The types of what the methods of the hub and of projects answer. Their parameters are in natskit/hub/ and
 * natskit/project/; a platform can add methods of its own.
 */

/**
 * A project, as the hub describes it to the account that asks.
 * @typedef {object} Project
 * @property {string} project_id
 * @property {string} title
 * @property {"owner" | "collaborator" | null} role what the asking account is in this project
 * @property {"stopped" | "starting" | "running" | "failed"} state
 * @property {"running" | "stopped"} desired the state that was asked for last
 * @property {string} detail why the project is in this state; empty if all is well
 * @property {Collaborator[]} collaborators everybody who may use the project, the owner first
 * @property {string} created_at ISO 8601
 */

/**
 * An account that may use a project.
 * @typedef {object} Collaborator
 * @property {string} account_id
 * @property {string} email
 * @property {"owner" | "collaborator"} role
 */

/**
 * One of the places where an account is signed in. All times are ISO 8601.
 * @typedef {object} SignedIn
 * @property {string} session_id
 * @property {string} device browser and system, for people
 * @property {string} address the IP address of the last request
 * @property {string} created_at
 * @property {string} last_seen
 * @property {string} expires_at
 * @property {boolean | null} mine whether it is the session that asks
 */

/**
 * The platform as one hub sees it, for administrators. All times are ISO 8601, sizes are in bytes.
 * @typedef {object} PlatformOverview
 * @property {string} time when it was seen
 * @property {{name: string, version: string, problems: string[], counters: Record<string, number>}} hub the hub that
 *   answers; `problems` is empty when all is well, and `counters` count since its start
 * @property {number} accounts
 * @property {number} projects
 * @property {NatsServerSeen[]} nats_servers those that answer
 * @property {number} nats_servers_expected
 * @property {{role: "hub" | "keeper", name: string, nats_server: string, since: string}[]} connected
 * @property {RunnerSeen[]} runners
 * @property {ProjectUse[]} use the projects that use most
 * @property {{begun: string | null, verified: string | null}} backup when the newest good backup was begun, and when one
 *   was last verified
 * @property {{name: string, severity: "critical" | "warning", about: string}[]} alerts those that the hub can see
 */

/**
 * A nats-server, as it describes itself.
 * @typedef {object} NatsServerSeen
 * @property {string} name
 * @property {string} version
 * @property {string} since
 * @property {number} cpu_percent of one processor
 * @property {number} processors
 * @property {number} memory_bytes
 * @property {number} connections
 * @property {number} slow_consumers
 * @property {number} messages to and from it since its start
 * @property {number | null} storage_bytes of its streams
 * @property {number | null} storage_limit_bytes
 * @property {boolean | null} has_leader whether it knows a leader of JetStream; `null` if it is alone
 */

/**
 * A runner.
 * @typedef {object} RunnerSeen
 * @property {string} runner_id
 * @property {string} name
 * @property {boolean} revoked
 * @property {boolean} alive
 * @property {string | null} version
 * @property {number} running how many projects run there
 * @property {{load: number, processors: number, memory_bytes: number, memory_available_bytes: number,
 *   disk_bytes: number, disk_free_bytes: number} | null} host `null` if the runner does not answer
 */

/**
 * What a project uses. `null` for what its host does not count.
 * @typedef {object} ProjectUse
 * @property {string} project_id
 * @property {string} title
 * @property {string | null} owner
 * @property {string} runner
 * @property {number | null} cpu_seconds since its start
 * @property {number | null} memory_bytes
 * @property {number | null} tasks processes and threads
 * @property {number | null} disk_bytes at the last measurement
 */

/**
 * A text file.
 * @typedef {object} TextFile
 * @property {string} text
 * @property {string} version changes whenever the content does; pass it as `expected_version` when you write
 */

/**
 * One name in a folder. Of a symbolic link it describes the link, not its target.
 * @typedef {object} DirectoryEntry
 * @property {string} name
 * @property {"file" | "directory" | "symlink" | "other"} type
 * @property {number} size in bytes
 * @property {number} mtime in seconds since 1970
 * @property {number} mode the permission bits, such as 0o644
 * @property {string | null} target where a link leads, as it says; `null` for all else
 */

/**
 * A part of a folder's list.
 * @typedef {object} DirectoryPage
 * @property {DirectoryEntry[]} entries
 * @property {string | null} next pass it as `after` to get the next part; `null` at the end
 */

/**
 * A watched folder, whose changes are events on `events.project.{id}.files`.
 * @typedef {object} WatchState
 * @property {string} watch its name in events
 * @property {number} seq the number of its last event
 * @property {number} seconds how long it is watched unless somebody asks again
 */

/**
 * The state of a file when a part of it was read.
 * @typedef {object} FileState
 * @property {number} size in bytes
 * @property {number} mtime in seconds since 1970
 * @property {number} mode the permission bits, such as 0o644
 * @property {string} tag changes whenever the file does
 */

/**
 * One thing in the trash of a project.
 * @typedef {object} TrashedEntry
 * @property {string} id
 * @property {string} path where it was; empty if that is not known
 * @property {string} deleted when it was removed, in the local time of the project's host
 * @property {"file" | "directory" | "symlink" | "other"} type
 * @property {number} size in bytes
 */

/**
 * A part of the list of the trash.
 * @typedef {object} TrashPage
 * @property {TrashedEntry[]} entries
 * @property {string | null} next pass it as `after` to get the next part; `null` at the end
 */

/**
 * What each method of the hub answers.
 * @typedef {object} HubResults
 * @property {{pong: true, hub: string, time: string}} ping
 * @property {{account_id: string, email: string, must_change_password: boolean, administrator: boolean}} whoami
 * @property {PlatformOverview} describe_platform
 * @property {Project[]} list_projects
 * @property {Project} create_project
 * @property {Project} rename_project
 * @property {{project_id: string}} delete_project
 * @property {Project} share_project
 * @property {{project_id: string}} unshare_project
 * @property {Project} start_project
 * @property {Project} stop_project
 * @property {{version: string}} write_text_file_to_project
 * @property {TextFile} read_text_file_from_project
 * @property {SignedIn[]} list_sessions
 * @property {{session_id: string}} end_session
 * @property {{account_id: string}} end_all_sessions
 * @property {{account_id: string}} change_password
 */

/**
 * What each method of a project answers. `exec` is not among them: {@link Client.exec} follows its output.
 * @typedef {object} ProjectResults
 * @property {{pong: true, project_id: string}} ping
 * @property {TextFile} read_text_file
 * @property {{version: string}} write_text_file
 * @property {DirectoryEntry[]} list_directory
 * @property {DirectoryPage} list_directory_page
 * @property {WatchState} watch_directory
 * @property {DirectoryEntry} stat
 * @property {{path: string}} make_directory
 * @property {{path: string}} make_link
 * @property {{mode: number}} chmod
 * @property {{path: string}} move
 * @property {{copied: number, skipped: number}} copy
 * @property {{removed: number}} remove
 * @property {{id: string}} move_to_trash
 * @property {TrashPage} list_trash
 * @property {{path: string}} restore_from_trash
 * @property {{removed: number}} empty_trash
 * @property {FileState} read_file
 * @property {{version: string}} write_file
 * @property {{offset: number}} start_upload
 * @property {{offset: number}} upload_part
 * @property {{version: string}} finish_upload
 * @property {{upload: string}} cancel_upload
 * @property {DirectoryPage} list_tree
 * @property {{versions: (string | null)[]}} hash_files
 * @property {{files: FileState[]}} read_files
 * @property {{written: number}} write_files
 */

export {};
