"""The relay API's front: authenticates, parses, answers in OpenAI's dialect. Makes no upstream
call.
"""
