variable "project" {
  description = "Id of the project that has the pool"
  type        = string
}

variable "issuer_url" {
  description = "`issuer.url` of the broker, to the letter"
  type        = string
  validation {
    condition     = startswith(var.issuer_url, "https://") && !endswith(var.issuer_url, "/")
    error_message = "The issuer begins with https:// and does not end with a slash: Google compares it to the letter."
  }
}

variable "jwks_json" {
  description = "What `carnet issuer jwks` prints, where Google cannot fetch it from the issuer; absent: Google fetches"
  type        = string
  default     = null
  validation {
    condition     = var.jwks_json == null || can(jsondecode(var.jwks_json).keys)
    error_message = "The keys are a JSON Web Key Set, as `carnet issuer jwks` prints it."
  }
}

variable "project_number" {
  type = string
}

variable "pool" {
  type    = string
  default = "carnet"
}

variable "provider_id" {
  type    = string
  default = "carnet"
}

variable "tenants" {
  type = list(string)
}

variable "targets" {
  type = map(object({
    service_account = string
    rules           = list(string)
    sharing         = optional(string, "subject")
  }))
}

variable "attributes" {
  type    = list(string)
  default = []
}

variable "enable_services" {
  description = "Whether the APIs of the pool's project are turned on here"
  type        = bool
  default     = true
}
