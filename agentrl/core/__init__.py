"""The contracts of agentrl and what every floor may use."""
