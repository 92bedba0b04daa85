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
 * @property {{account_id: string, email: string, must_change_password: boolean}} whoami
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
