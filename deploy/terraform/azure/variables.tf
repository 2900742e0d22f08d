variable "resource_group_name" {
  type = string
}

variable "location" {
  type = string
}

variable "issuer_url" {
  description = "`issuer.url` of the broker, to the letter"
  type        = string
  validation {
    condition     = startswith(var.issuer_url, "https://") && !endswith(var.issuer_url, "/")
    error_message = "The issuer begins with https:// and does not end with a slash: Entra compares it to the letter."
  }
}

variable "identities" {
  description = "By name of the managed identity: the broker's targets with `source: issuer` that act as it"
  type        = map(object({ targets = list(string) }))
  validation {
    condition     = alltrue([for identity in var.identities : length(identity.targets) <= 20])
    error_message = "An identity has at most 20 federated credentials."
  }
  validation {
    condition     = alltrue(flatten([for identity in var.identities : [for target in identity.targets : can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{2,112}$", target))]]))
    error_message = "A credential is named after its target: 3 to 113 letters, digits, hyphens and underscores. For another name, make the credential yourself with the subject carnet:TARGET."
  }
}

variable "audience" {
  description = "`aud` of the broker's assertions; in sovereign clouds api://AzureADTokenExchangeUSGov or api://AzureADTokenExchangeChina"
  type        = string
  default     = "api://AzureADTokenExchange"
  validation {
    condition     = startswith(var.audience, "api://AzureADTokenExchange")
    error_message = "Entra takes its own audience only."
  }
}

variable "tags" {
  type    = map(string)
  default = {}
}
