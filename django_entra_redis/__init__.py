"""Redis for Django on Azure, with Microsoft Entra ID tokens in place of access keys."""

__version__ = "0.1.0"
