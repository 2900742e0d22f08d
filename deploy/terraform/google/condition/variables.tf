variable "project_number" {
  description = "The pool's project, by number"
  type        = string
  validation {
    condition     = can(regex("^[0-9]+$", var.project_number))
    error_message = "The broker's audience has the project's number, not its id: gcloud projects describe PROJECT --format='value(projectNumber)'."
  }
}

variable "pool" {
  description = "Id of the workload identity pool"
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9-]{4,32}$", var.pool)) && !startswith(var.pool, "gcp-")
    error_message = "A pool's id has 4 to 32 of a-z, 0-9 and -, and does not begin with gcp-."
  }
}

variable "provider_id" {
  description = "Id of the provider in the pool"
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9-]{4,32}$", var.provider_id)) && !startswith(var.provider_id, "gcp-")
    error_message = "A provider's id has 4 to 32 of a-z, 0-9 and -, and does not begin with gcp-."
  }
}

variable "tenants" {
  description = "Entra tenants whose callers may come, as in `entra.tenants`"
  type        = list(string)
  validation {
    condition     = length(var.tenants) > 0 && alltrue([for id in var.tenants : can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", id))])
    error_message = "Name at least one tenant, by its id: without one the pool would be open to every tenant that the broker knows."
  }
}

variable "targets" {
  description = "The broker's targets behind this provider: who is become, the rules that allow it, and `sharing` as in the configuration"
  type = map(object({
    service_account = string
    rules           = list(string)
    sharing         = optional(string, "subject")
  }))
  validation {
    condition     = length(var.targets) > 0 && alltrue([for target in var.targets : length(target.rules) > 0])
    error_message = "Name at least one target, and for each the rules that allow it: a provider without them takes nobody."
  }
  validation {
    condition     = alltrue([for target in var.targets : contains(["subject", "target"], target.sharing)])
    error_message = "sharing is subject or target."
  }
  validation {
    condition     = alltrue([for target in var.targets : can(regex("^[a-z0-9-]+@[a-z0-9.-]+\\.gserviceaccount\\.com$", target.service_account))])
    error_message = "service_account is an address such as trainer@ml-prod.iam.gserviceaccount.com."
  }
  validation {
    condition     = alltrue(flatten([for name, target in var.targets : [for word in concat([name], target.rules) : can(regex("^[A-Za-z0-9._-]+$", word))]]))
    error_message = "Names of targets and rules have letters, digits, dots, hyphens and underscores."
  }
}

variable "attributes" {
  description = "Attributes that rules assert, for bindings of your own"
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for name in var.attributes : can(regex("^[a-z0-9_]{1,100}$", name))])
    error_message = "An attribute's name has a-z, 0-9 and _."
  }
}
